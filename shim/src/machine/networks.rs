//! A pod's network as a machine's seed describes it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use podvisor_proto::agent::v1::{Interface, NetworkConfig, Route};
use podvisor_seed::{Nic, network};

/// RTN_UNICAST (linux/rtnetlink.h): the only kind of route that leads somewhere.
const UNICAST: u32 = 1;
/// RTPROT_KERNEL (linux/rtnetlink.h): routes that the guest's kernel makes itself for its addresses.
const BY_KERNEL: u32 = 2;
/// RT_TABLE_MAIN (linux/rtnetlink.h).
const MAIN: u32 = 254;

/// The cards of a machine in that network.
pub fn seed_nics(config: &NetworkConfig) -> Vec<Nic> {
    let nics = config.interfaces.iter();
    nics.filter_map(|interface| nic(interface, &config.routes))
        .collect()
}

fn nic(interface: &Interface, routes: &[Route]) -> Option<Nic> {
    let addresses = interface.addresses.iter();
    let addresses = addresses.filter_map(|address| net(&address.ip, address.prefix_len));
    Some(Nic {
        name: interface.name.clone(),
        mac: interface.mac.as_slice().try_into().ok()?,
        mtu: u16::try_from(interface.mtu).unwrap_or(u16::MAX),
        addresses: addresses
            .filter(|address| !is_link_local(address))
            .collect(),
        routes: routes
            .iter()
            .filter_map(|route| seed_route(route, &interface.name))
            .collect(),
    })
}

/// A route that a machine is told; of several next hops the first through this interface.
fn seed_route(route: &Route, interface: &str) -> Option<network::Route> {
    let is_ours = route.kind == UNICAST && route.protocol != BY_KERNEL && route.table == MAIN;
    let hop = route
        .next_hops
        .iter()
        .find(|hop| hop.interface == interface)?;
    let destination = match (route.destination.is_empty(), route.ipv6) {
        (true, false) => IpNet::new(Ipv4Addr::UNSPECIFIED.into(), 0).ok()?,
        (true, true) => IpNet::new(Ipv6Addr::UNSPECIFIED.into(), 0).ok()?,
        (false, _) => net(&route.destination, route.prefix_len)?,
    };
    is_ours.then_some(network::Route {
        destination,
        gateway: address(&hop.gateway),
        metric: route.metric,
    })
}

/// The guest makes such addresses itself.
fn is_link_local(net: &IpNet) -> bool {
    matches!(net.addr(), IpAddr::V6(address) if address.is_unicast_link_local())
}

fn net(bytes: &[u8], prefix_len: u32) -> Option<IpNet> {
    IpNet::new(address(bytes)?, u8::try_from(prefix_len).ok()?).ok()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use podvisor_proto::agent::v1::{Address, NextHop};

    use super::*;

    #[test]
    fn a_machine_is_told_addresses_and_routes_but_not_what_its_kernel_makes() {
        let hop = |gateway: &[u8]| NextHop {
            gateway: gateway.to_vec(),
            interface: "eth0".to_owned(),
            ..NextHop::default()
        };
        let route = |destination: &[u8], prefix_len, gateway: &[u8], protocol| Route {
            destination: destination.to_vec(),
            prefix_len,
            next_hops: vec![hop(gateway)],
            table: MAIN,
            kind: UNICAST,
            protocol,
            ..Route::default()
        };
        let config = NetworkConfig {
            interfaces: vec![Interface {
                name: "eth0".to_owned(),
                mac: vec![2, 0, 0, 0, 0, 1],
                mtu: 1450,
                addresses: [
                    (vec![10, 88, 0, 5], 16),
                    (
                        vec![0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
                        64,
                    ),
                ]
                .map(|(ip, prefix_len)| Address { ip, prefix_len })
                .to_vec(),
            }],
            routes: vec![
                route(&[], 0, &[10, 88, 0, 1], 3),
                route(&[10, 88, 0, 0], 16, &[], BY_KERNEL),
            ],
            ..NetworkConfig::default()
        };
        let nics = seed_nics(&config);
        assert_eq!(nics[0].addresses, ["10.88.0.5/16".parse().unwrap()]);
        assert_eq!(nics[0].mtu, 1450);
        let default = network::Route {
            destination: "0.0.0.0/0".parse().unwrap(),
            gateway: Some("10.88.0.1".parse().unwrap()),
            metric: 0,
        };
        assert_eq!(nics[0].routes, [default]);
    }
}
