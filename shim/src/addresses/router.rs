//! Router advertisements (RFC 4861) that say what the pod's namespace knows, and answers for the
//! addresses that stand for its gateways.

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;

use super::SERVER_MAC;
use super::plan::{Ipv6Plan, LinkPlan, Router};
use super::wire::names;

/// What a packet has beside a body: the header of IPv6, and eight bytes of ICMPv6.
const HEADERS_LEN: usize = 48;
/// What an advertisement's body begins with: two times, and the router's hardware address.
const BEGIN_LEN: usize = 16;
/// The longest option, in bytes: 255 units.
const OPTION_LEN_MAX: usize = 255 * 8;
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

/// The advertisements of each router: several, where one packet does not hold all options (RFC 4861,
/// 6.2.3). What belongs to the link is in those of the first.
pub fn advertisements(link: &LinkPlan, plan: &Ipv6Plan) -> Vec<Discovery> {
    let room = usize::from(link.mtu).saturating_sub(HEADERS_LEN);
    let mut all = Vec::new();
    for (place, router) in plan.routers.iter().enumerate() {
        let mut options = Vec::new();
        if place == 0 {
            options.extend(of_link(link, plan, room));
        }
        options.extend(router.routes.iter().map(route));
        add_advertisements(&mut all, &advertisement(router), &options, room);
    }
    all
}

/// Adds advertisements that begin like `bare`. An option that fits into none is left out.
fn add_advertisements(
    all: &mut Vec<Discovery>,
    bare: &Discovery,
    options: &[Vec<u8>],
    room: usize,
) {
    let mut current = bare.clone();
    for option in options {
        if bare.body.len() + option.len() > room {
            continue;
        }
        if current.body.len() + option.len() > room {
            all.push(std::mem::replace(&mut current, bare.clone()));
        }
        current.body.extend(option);
    }
    all.push(current);
}

/// An advertisement that says nothing but who the router is.
fn advertisement(router: &Router) -> Discovery {
    let life = if router.is_default { ROUTER_LIFE } else { 0 };
    let [high, low] = life.to_be_bytes();
    // How long neighbours stay reachable, and how often they are asked: the guest's choice.
    let mut body = vec![0; 8];
    if let Some(mac) = router.mac {
        body.extend(option(option::SOURCE_MAC, &mac));
    }
    Discovery {
        from: router.ip,
        head: [HOP_LIMIT, MANAGED_AND_OTHER, high, low],
        body,
    }
}

/// The options of a link, none of them longer than a packet with `room` has place for.
fn of_link(link: &LinkPlan, plan: &Ipv6Plan, room: usize) -> Vec<Vec<u8>> {
    let mut mtu = vec![0; 2];
    mtu.extend(u32::from(link.mtu).to_be_bytes());
    let mut options = vec![option(option::MTU, &mtu)];
    let prefixes = plan.on_link.iter();
    options.extend(prefixes.map(|net| option(option::PREFIX, &prefix(net))));
    // Behind what an advertisement begins with, in whole units, and behind the option's own head.
    let names_len_max = (room.saturating_sub(BEGIN_LEN) / 8 * 8).min(OPTION_LEN_MAX);
    let search = names(&link.resolver.search, names_len_max.saturating_sub(8));
    for (kind, value) in [
        (option::NAME_SERVERS, link.ipv6_servers()),
        (option::SEARCH, search),
    ] {
        if !value.is_empty() {
            let mut all = vec![0; 2];
            all.extend(FOREVER.to_be_bytes());
            all.extend(value);
            options.push(option(kind, &all));
        }
    }
    options
}

fn route(net: &Ipv6Net) -> Vec<u8> {
    let mut value = vec![net.prefix_len(), 0];
    value.extend(FOREVER.to_be_bytes());
    value.extend(net.network().octets());
    option(option::ROUTE, &value)
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
    body.extend(option(option::TARGET_MAC, &mac));
    Some(Discovery {
        from: target,
        head: [leads_on | solicited | OVERRIDE, 0, 0, 0],
        body,
    })
}

/// An option, filled up to a multiple of eight bytes. Its callers bound its length.
fn option(kind: u8, value: &[u8]) -> Vec<u8> {
    let len = (value.len() + 2).next_multiple_of(8);
    let mut bytes = vec![kind, u8::try_from(len / 8).unwrap_or(u8::MAX)];
    bytes.extend(value);
    bytes.resize(len, 0);
    bytes
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
    fn what_one_packet_does_not_hold_is_in_several() {
        let mut link = link();
        link.mtu = 1280;
        let routes = (0..60).map(|n| Ipv6Net::new([0xfd01, n, 0, 0, 0, 0, 0, 0].into(), 32));
        let routes: Vec<Ipv6Net> = routes.map(Result::unwrap).collect();
        let mut plan = link.ipv6.clone().unwrap();
        plan.routers[0].routes.clone_from(&routes);
        link.resolver.search = (0..32)
            .map(|n| format!("{}.n{n}", "x".repeat(60)))
            .collect();
        let advertised = advertisements(&link, &plan);
        let of_first = advertised
            .iter()
            .filter(|one| one.from == plan.routers[0].ip);
        let mut told = Vec::new();
        for one in of_first {
            assert!(one.body.len() + HEADERS_LEN <= 1280);
            assert_eq!(one.head, [64, 0xc0, 0x23, 0x28]);
            let options = options(&one.body[8..]);
            assert_eq!(options[0].0, option::SOURCE_MAC);
            told.extend(options.into_iter().skip(1));
        }
        let of_kind = |kind| told.iter().filter(move |(known, _)| *known == kind);
        assert_eq!(of_kind(option::ROUTE).count(), routes.len());
        assert_eq!(of_kind(option::PREFIX).count(), 1);
        let [(_, search)] = of_kind(option::SEARCH).collect::<Vec<_>>()[..] else {
            panic!("{told:?}");
        };
        let all = names(&link.resolver.search, usize::MAX);
        let told = search[6..].iter().rposition(|byte| *byte != 0).unwrap();
        assert!(
            told > 1000 && all.starts_with(&search[6..=told + 6]),
            "{told}"
        );
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
