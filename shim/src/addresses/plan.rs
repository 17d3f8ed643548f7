//! What the services of a link tell its guest.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use podvisor_seed::{Nic, Resolver, Route};

/// Routes of a family that are told; more hardly fit into one message.
const ROUTES_MAX: usize = 32;
/// Who answers when there is no gateway to answer for.
const NO_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// A neighbour of the pod, by its address on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its address.
    pub ip: Ipv6Addr,
    /// Its hardware address.
    pub mac: [u8; 6],
}

/// All that is told on one link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkPlan {
    /// The guest's hardware address. Nobody else is answered.
    pub(super) mac: [u8; 6],
    pub(super) mtu: u16,
    pub(super) ipv4: Option<Ipv4Plan>,
    pub(super) ipv6: Option<Ipv6Plan>,
    /// Without a domain.
    pub(super) hostname: String,
    pub(super) resolver: Resolver,
}

impl LinkPlan {
    /// The addresses of the name servers that are reached by IPv6, one behind the other.
    pub(super) fn ipv6_servers(&self) -> Vec<u8> {
        let servers = self.resolver.servers.iter();
        let servers = servers.filter_map(|server| match server {
            IpAddr::V6(server) => Some(server.octets()),
            IpAddr::V4(_) => None,
        });
        servers.flatten().collect()
    }
}

/// An IPv4 address with its routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ipv4Plan {
    pub(super) address: Ipv4Net,
    /// Who the answers come from: the gateway, so that a guest can reach it to renew its lease.
    pub(super) server: Ipv4Addr,
    pub(super) router: Option<Ipv4Addr>,
    /// Those on the link first, as routes to the gateways of others; the default route is one.
    pub(super) routes: Vec<(Ipv4Net, Option<Ipv4Addr>)>,
}

/// IPv6 addresses with their routers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ipv6Plan {
    pub(super) addresses: Vec<Ipv6Addr>,
    /// Prefixes on the link.
    pub(super) on_link: Vec<Ipv6Net>,
    /// At least one, be it none that leads anywhere.
    pub(super) routers: Vec<Router>,
}

/// A router as it is advertised. A guest takes the sender of an advertisement for its gateway, by its
/// link-local address (RFC 4861, 6.1.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Router {
    /// The gateway's link-local address; one that stands for it when only a global one is known.
    pub(super) ip: Ipv6Addr,
    /// The gateway's hardware address, when `ip` stands for it: solicitations for `ip` are answered
    /// with it. None when the gateway answers for itself.
    pub(super) mac: Option<[u8; 6]>,
    pub(super) is_default: bool,
    pub(super) routes: Vec<Ipv6Net>,
}

impl LinkPlan {
    /// The plan for a card; `neighbours` are gateways whose hardware address is known.
    pub fn new(nic: &Nic, resolver: &Resolver, hostname: &str, neighbours: &[Neighbour]) -> Self {
        Self {
            mac: nic.mac,
            mtu: nic.mtu,
            ipv4: ipv4(nic),
            ipv6: ipv6(nic, neighbours),
            hostname: hostname.split('.').next().unwrap_or_default().to_owned(),
            resolver: resolver.clone(),
        }
    }
}

fn ipv4(nic: &Nic) -> Option<Ipv4Plan> {
    let address = nic.addresses.iter().find_map(|address| match address {
        IpNet::V4(address) => Some(*address),
        IpNet::V6(_) => None,
    })?;
    let mut routes: Vec<_> = nic.routes.iter().filter_map(ipv4_route).collect();
    // The one that is preferred, if several lead to the same place; the default route is told first.
    routes.sort_by_key(|(to, _, metric)| (to.prefix_len() > 0, *metric));
    let mut told: Vec<(Ipv4Net, Option<Ipv4Addr>)> = Vec::new();
    for (destination, gateway, _) in routes.into_iter().take(ROUTES_MAX) {
        let host = gateway.map(Ipv4Net::from);
        let is_off_link = gateway.is_some_and(|gateway| !address.contains(&gateway));
        for route in [
            host.filter(|_| is_off_link).map(|host| (host, None)),
            Some((destination, gateway)),
        ] {
            told.extend(route.filter(|(to, _)| told.iter().all(|(known, _)| known != to)));
        }
    }
    told.sort_by_key(|(_, gateway)| gateway.is_some());
    let default = told.iter().find(|(to, _)| to.prefix_len() == 0);
    let router = default.and_then(|(_, gateway)| *gateway);
    Some(Ipv4Plan {
        address,
        server: router.unwrap_or(NO_GATEWAY),
        router,
        routes: told,
    })
}

fn ipv4_route(route: &Route) -> Option<(Ipv4Net, Option<Ipv4Addr>, u32)> {
    match (route.destination, route.gateway) {
        (IpNet::V4(to), None) => Some((to, None, route.metric)),
        (IpNet::V4(to), Some(IpAddr::V4(gateway))) => Some((to, Some(gateway), route.metric)),
        _ => None,
    }
}

fn ipv6(nic: &Nic, neighbours: &[Neighbour]) -> Option<Ipv6Plan> {
    let nets = nic.addresses.iter().filter_map(|address| match address {
        IpNet::V6(address) => Some(*address),
        IpNet::V4(_) => None,
    });
    let nets: Vec<Ipv6Net> = nets.collect();
    if nets.is_empty() {
        return None;
    }
    let mut plan = Ipv6Plan {
        addresses: nets.iter().map(Ipv6Net::addr).collect(),
        on_link: nets
            .iter()
            .filter(|net| net.prefix_len() < 128)
            .map(Ipv6Net::trunc)
            .collect(),
        routers: Vec::new(),
    };
    let ours = |route: &&Route| matches!(route.destination, IpNet::V6(_));
    let mut routes: Vec<_> = nic.routes.iter().filter(ours).collect();
    routes.sort_by_key(|route| (route.destination.prefix_len() > 0, route.metric));
    let mut has_default = false;
    for route in routes.into_iter().take(ROUTES_MAX) {
        match (route.destination, route.gateway) {
            (IpNet::V6(to), None) => plan.on_link.push(to),
            (IpNet::V6(to), Some(IpAddr::V6(gateway))) => {
                let Some(router) = router(&mut plan.routers, gateway, neighbours) else {
                    tracing::warn!(%gateway, %to, "a gateway does not answer: no route is advertised");
                    continue;
                };
                if to.prefix_len() > 0 {
                    router.routes.push(to);
                } else if !has_default {
                    router.is_default = true;
                    has_default = true;
                }
            }
            _ => {}
        }
    }
    if plan.routers.is_empty() {
        // A guest asks for its address only when an advertisement tells it to.
        plan.routers.push(Router {
            ip: stand_in(0),
            mac: Some(super::SERVER_MAC),
            is_default: false,
            routes: Vec::new(),
        });
    }
    Some(plan)
}

/// The router that advertises a gateway's routes.
fn router<'r>(
    routers: &'r mut Vec<Router>,
    gateway: Ipv6Addr,
    neighbours: &[Neighbour],
) -> Option<&'r mut Router> {
    let (ip, mac) = if gateway.is_unicast_link_local() {
        (gateway, None)
    } else {
        let known = neighbours.iter().position(|known| known.ip == gateway)?;
        let mac = neighbours.get(known)?.mac;
        (stand_in(known + 1), Some(mac))
    };
    let place = routers.iter().position(|router| router.ip == ip);
    let place = place.unwrap_or_else(|| {
        routers.push(Router {
            ip,
            mac,
            is_default: false,
            routes: Vec::new(),
        });
        routers.len() - 1
    });
    routers.get_mut(place)
}

/// The link-local address that stands for a gateway.
fn stand_in(number: usize) -> Ipv6Addr {
    let number = u16::try_from(number).unwrap_or(u16::MAX);
    // "pod".
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0x0070, 0x6f64, 0, number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, gateway: Option<&str>, metric: u32) -> Route {
        Route {
            destination: destination.parse().unwrap(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            metric,
        }
    }

    fn plan(addresses: &[&str], routes: Vec<Route>, neighbours: &[Neighbour]) -> LinkPlan {
        let nic = Nic {
            name: "eth0".into(),
            mac: [2; 6],
            mtu: 1450,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            routes,
        };
        LinkPlan::new(&nic, &Resolver::default(), "web.a.test", neighbours)
    }

    #[test]
    fn a_gateway_off_the_link_gets_a_route_of_its_own_first() {
        let routes = vec![
            route("0.0.0.0/0", Some("169.254.1.1"), 0),
            route("10.9.0.0/16", Some("169.254.1.1"), 0),
        ];
        let plan = plan(&["10.1.0.5/32"], routes, &[]).ipv4.unwrap();
        let gateway: Ipv4Addr = "169.254.1.1".parse().unwrap();
        assert_eq!((plan.server, plan.router), (gateway, Some(gateway)));
        let expected = [
            ("169.254.1.1/32", None),
            ("0.0.0.0/0", Some(gateway)),
            ("10.9.0.0/16", Some(gateway)),
        ];
        assert_eq!(
            plan.routes,
            expected.map(|(to, gateway)| (to.parse().unwrap(), gateway))
        );
    }

    #[test]
    fn of_two_default_routes_the_preferred_one_is_told() {
        let routes = vec![
            route("0.0.0.0/0", Some("10.1.0.9"), 300),
            route("0.0.0.0/0", Some("10.1.0.1"), 100),
        ];
        let plan = plan(&["10.1.0.5/24"], routes, &[]).ipv4.unwrap();
        assert_eq!(plan.router, Some("10.1.0.1".parse().unwrap()));
        assert_eq!(plan.routes.len(), 1);
    }

    #[test]
    fn many_routes_hide_no_default_route_of_either_family() {
        let mut routes: Vec<Route> = (0..40)
            .map(|n| route(&format!("10.9.{n}.0/24"), Some("10.1.0.1"), 0))
            .collect();
        routes.extend((0..40).map(|n| route(&format!("fd01:{n}::/32"), Some("fe80::1"), 0)));
        routes.push(route("::/0", Some("fe80::1"), 100));
        routes.push(route("0.0.0.0/0", Some("10.1.0.1"), 100));
        let plan = plan(&["10.1.0.5/24", "fd00::5/64"], routes, &[]);
        let (ipv4, ipv6) = (plan.ipv4.unwrap(), plan.ipv6.unwrap());
        assert_eq!(ipv4.router, Some("10.1.0.1".parse().unwrap()));
        assert_eq!(ipv4.routes.len(), ROUTES_MAX);
        let router = &ipv6.routers[0];
        assert!(router.is_default);
        assert_eq!(router.routes.len(), ROUTES_MAX - 1);
    }

    #[test]
    fn a_link_local_gateway_is_advertised_as_itself() {
        let routes = vec![
            route("::/0", Some("fe80::1"), 0),
            route("fd01::/48", Some("fe80::1"), 0),
        ];
        let plan = plan(&["fd00::5/128"], routes, &[]).ipv6.unwrap();
        let expected = Router {
            ip: "fe80::1".parse().unwrap(),
            mac: None,
            is_default: true,
            routes: vec!["fd01::/48".parse().unwrap()],
        };
        assert_eq!(plan.routers, [expected]);
        assert_eq!(plan.on_link, []);
    }

    #[test]
    fn a_global_gateway_is_stood_for_with_its_own_hardware_address() {
        let gateway = Neighbour {
            ip: "fd00::1".parse().unwrap(),
            mac: [7; 6],
        };
        let routes = || vec![route("::/0", Some("fd00::1"), 0)];
        let plan_of =
            |neighbours: &[Neighbour]| plan(&["fd00::5/64"], routes(), neighbours).ipv6.unwrap();
        let known = plan_of(&[gateway]);
        let [router] = known.routers.as_slice() else {
            panic!("{known:?}");
        };
        assert!(router.ip.is_unicast_link_local() && router.is_default);
        assert_eq!(router.mac, Some([7; 6]));
        assert_eq!(known.on_link, ["fd00::/64".parse().unwrap()]);
        // Without it there is no way out, but the address is still told.
        assert!(plan_of(&[]).routers.iter().all(|router| !router.is_default));
        assert_eq!(plan_of(&[]).routers.len(), 1);
    }
}
