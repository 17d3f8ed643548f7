//! The cards of a machine, from what the pod's namespace has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use podvisor_proto::agent::v1::{Address, Interface, NetworkConfig, Route};
use podvisor_seed::Nic;

/// `RT_TABLE_MAIN`.
const MAIN_TABLE: u32 = 254;
/// `RTN_UNICAST`.
const UNICAST: u32 = 1;
/// `RTPROT_KERNEL`.
const BY_KERNEL: u32 = 2;
/// What the kernel takes for an IPv6 route without a metric (`IP6_RT_PRIO_USER`).
const IPV6_METRIC: u32 = 1024;

/// The cards with their addresses and routes. Policy rules, and routes of other tables than the main
/// one, have no place in what a machine is told; they are counted in the log.
pub fn nics(config: &NetworkConfig) -> Vec<Nic> {
    let main = |route: &&Route| route.table == MAIN_TABLE && route.kind == UNICAST;
    let left_out = config.routes.iter().filter(|route| !main(route)).count();
    if left_out > 0 || !config.rules.is_empty() {
        let rules = config.rules.len();
        tracing::warn!(rules, routes = left_out, "not told to a machine");
    }
    let interfaces = config.interfaces.iter();
    let nics = interfaces.filter_map(|interface| {
        let mut nic = nic(interface)?;
        let routes = config.routes.iter().filter(main);
        nic.routes = routes.filter_map(|route| of_nic(route, &nic)).collect();
        Some(nic)
    });
    nics.collect()
}

fn nic(interface: &Interface) -> Option<Nic> {
    let addresses = interface.addresses.iter().filter_map(address);
    Some(Nic {
        name: interface.name.clone(),
        mac: interface.mac.as_slice().try_into().ok()?,
        mtu: u16::try_from(interface.mtu).unwrap_or(u16::MAX),
        // A machine gives itself its link-local addresses.
        addresses: addresses.filter(|net| !is_link_local(*net)).collect(),
        routes: Vec::new(),
    })
}

fn address(address: &Address) -> Option<IpNet> {
    IpNet::new(ip(&address.ip)?, u8::try_from(address.prefix_len).ok()?).ok()
}

fn of_nic(route: &Route, nic: &Nic) -> Option<podvisor_seed::Route> {
    let hop = route
        .next_hops
        .iter()
        .find(|hop| hop.interface == nic.name)?;
    let destination = match ip(&route.destination) {
        Some(ip) => ip,
        None if route.ipv6 => Ipv6Addr::UNSPECIFIED.into(),
        None => Ipv4Addr::UNSPECIFIED.into(),
    };
    let destination = IpNet::new(destination, u8::try_from(route.prefix_len).ok()?).ok()?;
    let gateway = ip(&hop.gateway);
    let is_own_network = route.protocol == BY_KERNEL
        && gateway.is_none()
        && nic.addresses.iter().any(|net| net.trunc() == destination);
    if is_own_network || is_link_local(destination) {
        return None;
    }
    let metric = match route.metric {
        IPV6_METRIC if destination.addr().is_ipv6() => 0,
        metric => metric,
    };
    Some(podvisor_seed::Route {
        destination,
        gateway,
        metric,
    })
}

fn is_link_local(net: IpNet) -> bool {
    matches!(net.addr(), IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// An address of 4 or 16 bytes.
fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let ipv4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    ipv4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

#[cfg(test)]
mod tests {
    use podvisor_proto::agent::v1::NextHop;

    use super::*;

    fn octets(text: &str) -> Vec<u8> {
        match text.parse() {
            Ok(IpAddr::V4(ip)) => ip.octets().to_vec(),
            Ok(IpAddr::V6(ip)) => ip.octets().to_vec(),
            Err(_) => Vec::new(),
        }
    }

    fn route(destination: &str, prefix_len: u32, gateway: &str) -> Route {
        Route {
            destination: octets(destination),
            prefix_len,
            table: MAIN_TABLE,
            kind: UNICAST,
            ipv6: gateway.contains(':'),
            next_hops: vec![NextHop {
                gateway: octets(gateway),
                interface: "eth0".into(),
                ..NextHop::default()
            }],
            ..Route::default()
        }
    }

    #[test]
    fn a_card_has_what_its_interface_has_but_for_what_its_kernel_makes() {
        let address = |ip, prefix_len| Address {
            ip: octets(ip),
            prefix_len,
        };
        let config = NetworkConfig {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: vec![2; 6],
                mtu: 1450,
                addresses: vec![
                    address("10.1.0.5", 24),
                    address("fd00::5", 64),
                    address("fe80::9", 64),
                ],
            }],
            routes: vec![
                Route {
                    metric: IPV6_METRIC,
                    ..route("", 0, "fe80::1")
                },
                route("", 0, "10.1.0.1"),
                Route {
                    protocol: BY_KERNEL,
                    ..route("10.1.0.0", 24, "")
                },
                Route {
                    table: 100,
                    ..route("10.2.0.0", 16, "10.1.0.1")
                },
            ],
            ..NetworkConfig::default()
        };
        let nics = nics(&config);
        let [nic] = nics.as_slice() else {
            panic!("{nics:?}");
        };
        let nets = ["10.1.0.5/24", "fd00::5/64"].map(|net| net.parse().unwrap());
        assert_eq!(nic.addresses, nets);
        let routes = [("::/0", "fe80::1"), ("0.0.0.0/0", "10.1.0.1")];
        assert_eq!(
            nic.routes,
            routes.map(|(to, gateway)| podvisor_seed::Route {
                destination: to.parse().unwrap(),
                gateway: Some(gateway.parse().unwrap()),
                metric: 0,
            })
        );
    }
}
