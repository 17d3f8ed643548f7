//! Router advertisements (RFC 4861) that say what the pod's namespace knows, and answers for the
//! addresses that stand for its gateways.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::Ipv6Net;

use super::SERVER_MAC;
use super::dhcp4::names;
use super::plan::{Ipv6Plan, LinkPlan, Router};

const HOP_LIMIT: u8 = 64;
/// Addresses, and all else, come by DHCPv6.
const MANAGED_AND_OTHER: u8 = 0xc0;
/// The longest life of a default router (RFC 4861, 6.2.1), in seconds; it is advertised again long
/// before that.
const ROUTER_LIFE: u16 = 9000;
const FOREVER: u32 = u32::MAX;
/// A prefix is on the link, and is none to make addresses of.
const ON_LINK: u8 = 0x80;
/// Of a neighbour advertisement: from a router, asked for, and it counts.
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// Options (RFC 4861; 24: RFC 4191; 25 and 31: RFC 8106).
mod option {
    pub const SOURCE_MAC: u8 = 1;
    pub const TARGET_MAC: u8 = 2;
    pub const PREFIX: u8 = 3;
    pub const MTU: u8 = 5;
    pub const ROUTE: u8 = 24;
    pub const NAME_SERVERS: u8 = 25;
    pub const SEARCH: u8 = 31;
}

/// A message behind its type and checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// The address that it comes from.
    pub from: Ipv6Addr,
    /// Four bytes.
    pub head: [u8; 4],
    /// The rest.
    pub body: Vec<u8>,
}

/// An advertisement of each router. What belongs to the link is in the first.
pub fn advertisements(link: &LinkPlan, plan: &Ipv6Plan) -> Vec<Discovery> {
    let routers = plan.routers.iter().enumerate();
    routers
        .map(|(place, router)| {
            let mut advertisement = advertisement(router);
            if place == 0 {
                add_link(&mut advertisement.body, link, plan);
            }
            advertisement
        })
        .collect()
}

fn advertisement(router: &Router) -> Discovery {
    let life = if router.is_default { ROUTER_LIFE } else { 0 };
    let [high, low] = life.to_be_bytes();
    // How long neighbours stay reachable, and how often they are asked: the guest's choice.
    let mut body = vec![0; 8];
    if let Some(mac) = router.mac {
        put(&mut body, option::SOURCE_MAC, &mac);
    }
    for route in &router.routes {
        let mut value = vec![route.prefix_len(), 0];
        value.extend(FOREVER.to_be_bytes());
        value.extend(route.network().octets());
        put(&mut body, option::ROUTE, &value);
    }
    Discovery {
        from: router.ip,
        head: [HOP_LIMIT, MANAGED_AND_OTHER, high, low],
        body,
    }
}

fn add_link(body: &mut Vec<u8>, link: &LinkPlan, plan: &Ipv6Plan) {
    let mut mtu = vec![0; 2];
    mtu.extend(u32::from(link.mtu).to_be_bytes());
    put(body, option::MTU, &mtu);
    for net in &plan.on_link {
        put(body, option::PREFIX, &prefix(net));
    }
    let servers = link.resolver.servers.iter();
    let servers = servers.filter_map(|server| match server {
        IpAddr::V6(server) => Some(server.octets()),
        IpAddr::V4(_) => None,
    });
    let servers: Vec<u8> = servers.flatten().collect();
    for (kind, value) in [
        (option::NAME_SERVERS, servers),
        (option::SEARCH, names(&link.resolver.search)),
    ] {
        if !value.is_empty() {
            let mut all = vec![0; 2];
            all.extend(FOREVER.to_be_bytes());
            all.extend(value);
            put(body, kind, &all);
        }
    }
}

fn prefix(net: &Ipv6Net) -> Vec<u8> {
    let mut value = vec![net.prefix_len(), ON_LINK];
    value.extend(FOREVER.to_be_bytes());
    value.extend(FOREVER.to_be_bytes());
    value.extend([0; 4]);
    value.extend(net.network().octets());
    value
}

/// The answer to "who has `target`?", asked by `from`, if `target` stands for a gateway.
pub fn neighbour(plan: &Ipv6Plan, from: Ipv6Addr, target: Ipv6Addr) -> Option<Discovery> {
    let router = plan.routers.iter().find(|router| router.ip == target)?;
    let mac = router.mac?;
    // Who has no address yet is not answered, but told (RFC 4861, 7.2.4).
    let solicited = if from.is_unspecified() { 0 } else { SOLICITED };
    let leads_on = if mac == SERVER_MAC { 0 } else { ROUTER };
    let mut body = target.octets().to_vec();
    put(&mut body, option::TARGET_MAC, &mac);
    Some(Discovery {
        from: target,
        head: [leads_on | solicited | OVERRIDE, 0, 0, 0],
        body,
    })
}

/// Adds an option, filled up to a multiple of eight bytes. One that is too long is left out.
fn put(body: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let len = (value.len() + 2).next_multiple_of(8);
    let Ok(units) = u8::try_from(len / 8) else {
        return;
    };
    body.extend([kind, units]);
    body.extend(value);
    body.resize(body.len() + len - value.len() - 2, 0);
}

#[cfg(test)]
mod tests {
    use podvisor_seed::{Nic, Resolver, Route};

    use super::super::frame::tests::GUEST;
    use super::super::plan::Neighbour;
    use super::*;

    const GATEWAY_MAC: [u8; 6] = [6; 6];

    fn link() -> LinkPlan {
        let route = |to: &str, gateway: &str| Route {
            destination: to.parse().unwrap(),
            gateway: Some(gateway.parse().unwrap()),
            metric: 0,
        };
        let nic = Nic {
            name: "eth0".into(),
            mac: GUEST,
            mtu: 1400,
            addresses: vec!["fd00::5/64".parse().unwrap()],
            routes: vec![route("::/0", "fd00::1"), route("fd01::/48", "fe80::1")],
        };
        let resolver = Resolver::parse("nameserver fd00::a\nsearch a.test");
        let gateway = Neighbour {
            ip: "fd00::1".parse().unwrap(),
            mac: GATEWAY_MAC,
        };
        LinkPlan::new(&nic, &resolver, "web", &[gateway])
    }

    fn options(body: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut rest = body;
        let mut options = Vec::new();
        while !rest.is_empty() {
            let (option, after) = rest.split_at(usize::from(rest[1]) * 8);
            options.push((option[0], option[2..].to_vec()));
            rest = after;
        }
        options
    }

    #[test]
    fn the_default_router_leads_to_the_gateway_and_says_what_belongs_to_the_link() {
        let link = link();
        let advertised = advertisements(&link, link.ipv6.as_ref().unwrap());
        let first = &advertised[0];
        assert!(first.from.is_unicast_link_local());
        assert_eq!(first.head, [64, 0xc0, 0x23, 0x28]);
        let options = options(&first.body[8..]);
        assert_eq!(options[0], (option::SOURCE_MAC, GATEWAY_MAC.to_vec()));
        assert_eq!(options[1], (option::MTU, vec![0, 0, 0, 0, 5, 120]));
        let (kind, prefix) = &options[2];
        assert_eq!((*kind, prefix[0], prefix[1]), (option::PREFIX, 64, 0x80));
        let (kind, servers) = &options[3];
        assert_eq!((*kind, servers.len()), (option::NAME_SERVERS, 22));
        let (kind, search) = &options[4];
        assert_eq!(*kind, option::SEARCH);
        assert_eq!(search[6..], *b"\x01a\x04test\0");
    }

    #[test]
    fn another_gateway_is_a_router_for_its_routes_only() {
        let link = link();
        let advertised = advertisements(&link, link.ipv6.as_ref().unwrap());
        let [_, second] = advertised.as_slice() else {
            panic!("{advertised:?}");
        };
        assert_eq!(second.from, "fe80::1".parse::<Ipv6Addr>().unwrap());
        assert_eq!(second.head, [64, 0xc0, 0, 0]);
        let options = options(&second.body[8..]);
        let [(kind, route)] = options.as_slice() else {
            panic!("{options:?}");
        };
        assert_eq!((*kind, route[0]), (option::ROUTE, 48));
    }

    #[test]
    fn only_what_stands_for_a_gateway_is_answered_for() {
        let link = link();
        let plan = link.ipv6.as_ref().unwrap();
        let from: Ipv6Addr = "fe80::9".parse().unwrap();
        let ours = plan.routers[0].ip;
        let answer = neighbour(plan, from, ours).unwrap();
        assert_eq!((answer.from, answer.head), (ours, [0xe0, 0, 0, 0]));
        assert_eq!(answer.body[..16], ours.octets());
        assert_eq!(answer.body[16..], [2, 1, 6, 6, 6, 6, 6, 6]);
        let told = neighbour(plan, Ipv6Addr::UNSPECIFIED, ours).unwrap();
        assert_eq!(told.head, [0xa0, 0, 0, 0]);
        for other in ["fe80::1", "fd00::1", "fd00::7"] {
            assert_eq!(neighbour(plan, from, other.parse().unwrap()), None);
        }
    }
}
