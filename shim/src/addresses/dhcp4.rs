//! A DHCP server with one lease (RFC 2131): the pod's address, for its guest. It never ends, for the
//! address lives as long as the pod.
//!
//! The codec is our own: what a server of one lease reads of a message are a few fixed fields and
//! three options, and it keeps none of it.

mod message;

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;

use self::message::{Reply, Request, code, kind, read};
use super::plan::{Ipv4Plan, LinkPlan};
use super::wire::{fitting, names};

/// A lease that does not end (RFC 2131, 3.3).
const FOREVER: u32 = u32::MAX;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A message for the guest.
    Message {
        /// The address that it goes to.
        to: Ipv4Addr,
        /// Whether the whole link is to hear it: the guest cannot be sent to by its own address.
        broadcast: bool,
        /// The message.
        message: Vec<u8>,
    },
    /// The guest says that somebody else has its address.
    Declined,
}

/// The answer to a message, if it asks for one.
pub fn answer(link: &LinkPlan, plan: &Ipv4Plan, message: &[u8]) -> Option<Answer> {
    let request = read(message, link.mac)?;
    let ours = plan.address.addr();
    let for_us = request.server.is_none_or(|server| server == plan.server);
    match request.kind {
        kind::DISCOVER => Some(lease(link, plan, &request, kind::OFFER)),
        kind::REQUEST if for_us => {
            // Renewing and rebinding clients name the address that they have instead.
            let wanted = request.requested.unwrap_or(request.current);
            Some(if wanted == ours {
                lease(link, plan, &request, kind::ACK)
            } else {
                refusal(link, plan, &request)
            })
        }
        kind::INFORM => Some(lease(link, plan, &request, kind::ACK)),
        kind::DECLINE if for_us => Some(Answer::Declined),
        // A released lease stays the guest's: there is nobody else to give it to.
        _ => None,
    }
}

/// The offer or the lease; a client that only asks gets what belongs to it, without one.
fn lease(link: &LinkPlan, plan: &Ipv4Plan, request: &Request<'_>, kind: u8) -> Answer {
    let only_asks = request.kind == kind::INFORM;
    let yours = if only_asks {
        Ipv4Addr::UNSPECIFIED
    } else {
        plan.address.addr()
    };
    let mut reply = Reply::new(link, plan, request, kind, yours);
    if !only_asks {
        reply.put(code::LEASE, &FOREVER.to_be_bytes());
    }
    reply.put(code::NETMASK, &plan.address.netmask().octets());
    if let Some(router) = plan.router {
        reply.put(code::ROUTERS, &router.octets());
    }
    reply.put(code::MTU, &link.mtu.to_be_bytes());
    let servers = link.resolver.servers.iter();
    let servers = servers.filter_map(|server| match server {
        IpAddr::V4(server) => Some(server.octets()),
        IpAddr::V6(_) => None,
    });
    reply.put(code::NAME_SERVERS, &servers.flatten().collect::<Vec<u8>>());
    reply.put(code::HOST_NAME, link.hostname.as_bytes());
    // Clients that understand these do not look at the router above (RFC 3442).
    let routes = plan.routes.iter().map(route);
    reply.put(code::ROUTES, &fitting(routes, reply.room()));
    reply.put(code::SEARCH, &names(&link.resolver.search, reply.room()));
    // Somebody who has an address is sent to by it (RFC 2131, 4.1).
    let has_address = !request.current.is_unspecified();
    let asks_for_all = request
        .flags
        .first()
        .is_some_and(|b| b & message::BROADCAST_FLAG != 0);
    let broadcast = !has_address && asks_for_all;
    let to = match (has_address, broadcast) {
        (true, _) => request.current,
        (false, true) => Ipv4Addr::BROADCAST,
        (false, false) => plan.address.addr(),
    };
    Answer::Message {
        to,
        broadcast,
        message: reply.finish(),
    }
}

/// The client asks for an address that it cannot have; it will begin anew.
fn refusal(link: &LinkPlan, plan: &Ipv4Plan, request: &Request<'_>) -> Answer {
    let mut reply = Reply::new(link, plan, request, kind::NAK, Ipv4Addr::UNSPECIFIED);
    reply.put(code::MESSAGE, b"not the pod's address");
    Answer::Message {
        to: Ipv4Addr::BROADCAST,
        broadcast: true,
        message: reply.finish(),
    }
}

/// A route as option 121 has it: as many bytes of the destination as its prefix needs.
fn route((to, gateway): &(Ipv4Net, Option<Ipv4Addr>)) -> Vec<u8> {
    let significant = usize::from(to.prefix_len()).div_ceil(8);
    let mut bytes = vec![to.prefix_len()];
    bytes.extend(to.network().octets().iter().take(significant));
    bytes.extend(gateway.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
    bytes
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeMap;

    use podvisor_seed::{Nic, Resolver, Route};
    use proptest::prelude::*;

    use super::super::frame::tests::GUEST;
    use super::message::{
        BOOT_REPLY, BOOT_REQUEST, BROADCAST_FLAG, COOKIE, ETHERNET, HEAD_LEN, HEADERS_LEN,
        PACKET_LEN_MIN,
    };
    use super::*;

    const OURS: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 5);
    const SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

    fn link() -> LinkPlan {
        let nic = Nic {
            name: "eth0".into(),
            mac: GUEST,
            mtu: 1450,
            addresses: vec!["10.1.0.5/32".parse().unwrap()],
            routes: vec![Route {
                destination: "0.0.0.0/0".parse().unwrap(),
                gateway: Some(SERVER.into()),
                metric: 0,
            }],
        };
        let resolver =
            Resolver::parse("nameserver 10.96.0.10\nnameserver fd00::a\nsearch a.test b");
        LinkPlan::new(&nic, &resolver, "web.prod.test", &[])
    }

    /// A client's message.
    pub fn message(kind: u8, current: Ipv4Addr, options: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![BOOT_REQUEST, ETHERNET, 6, 0, 1, 2, 3, 4, 0, 0, 0, 0];
        bytes.extend(current.octets());
        bytes.resize(28, 0);
        bytes.extend(GUEST);
        bytes.resize(HEAD_LEN, 0);
        bytes.extend(COOKIE);
        bytes.extend([code::KIND, 1, kind]);
        for (code, value) in options {
            bytes.extend([*code, u8::try_from(value.len()).unwrap()]);
            bytes.extend(*value);
        }
        bytes.push(code::END);
        bytes
    }

    fn answered(message: &[u8]) -> Option<Answer> {
        let link = link();
        answer(&link, link.ipv4.as_ref().unwrap(), message)
    }

    fn options(message: &[u8]) -> BTreeMap<u8, Vec<u8>> {
        let mut options = BTreeMap::<u8, Vec<u8>>::new();
        let mut rest = &message[HEAD_LEN + 4..];
        while rest[0] != code::END {
            let len = usize::from(rest[1]);
            let value = &rest[2..2 + len];
            options.entry(rest[0]).or_default().extend(value);
            rest = &rest[2 + len..];
        }
        options
    }

    fn sent(answer: Option<Answer>) -> (Ipv4Addr, bool, Vec<u8>) {
        match answer {
            Some(Answer::Message {
                to,
                broadcast,
                message,
            }) => (to, broadcast, message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_offer_has_the_pods_address_and_all_that_belongs_to_it() {
        let (to, broadcast, offer) = sent(answered(&message(
            kind::DISCOVER,
            Ipv4Addr::UNSPECIFIED,
            &[(code::CLIENT, b"me"), (55, &[1, 3, 6])],
        )));
        assert_eq!((to, broadcast), (OURS, false));
        assert_eq!(offer[4..8], [1, 2, 3, 4]);
        assert_eq!(offer[16..20], OURS.octets());
        let options = options(&offer);
        assert_eq!(options[&code::KIND], [kind::OFFER]);
        assert_eq!(options[&code::SERVER], SERVER.octets());
        assert_eq!(options[&code::LEASE], [255; 4]);
        assert_eq!(options[&code::NETMASK], [255; 4]);
        assert_eq!(options[&code::ROUTERS], SERVER.octets());
        let on_link = [32, 169, 254, 1, 1, 0, 0, 0, 0];
        let default = [0, 169, 254, 1, 1];
        assert_eq!(options[&code::ROUTES], [&on_link[..], &default].concat());
        assert_eq!(options[&code::MTU], 1450_u16.to_be_bytes());
        assert_eq!(options[&code::NAME_SERVERS], [10, 96, 0, 10]);
        assert_eq!(options[&code::HOST_NAME], b"web");
        assert_eq!(options[&code::SEARCH], b"\x01a\x04test\0\x01b\0");
        assert_eq!(options[&code::CLIENT], b"me");
    }

    #[test]
    fn the_pods_address_is_confirmed_and_any_other_refused() {
        let nobody = Ipv4Addr::UNSPECIFIED;
        let other = Ipv4Addr::new(10, 1, 0, 6);
        let kind_of = |current, options_: &[(u8, &[u8])]| {
            let answer = answered(&message(kind::REQUEST, current, options_));
            answer.map(|answer| options(&sent(Some(answer)).2)[&code::KIND][0])
        };
        let requested = |ip: Ipv4Addr| ip.octets();
        let server = SERVER.octets();
        for (current, asked, expected) in [
            (
                nobody,
                &[
                    (code::REQUESTED, &requested(OURS)[..]),
                    (code::SERVER, &server[..]),
                ][..],
                Some(kind::ACK),
            ),
            (
                nobody,
                &[(code::REQUESTED, &requested(OURS)[..])],
                Some(kind::ACK),
            ),
            (OURS, &[], Some(kind::ACK)),
            (
                nobody,
                &[(code::REQUESTED, &requested(other)[..])],
                Some(kind::NAK),
            ),
            (other, &[], Some(kind::NAK)),
            (
                nobody,
                &[
                    (code::REQUESTED, &requested(OURS)[..]),
                    (code::SERVER, &[10, 0, 0, 1]),
                ],
                None,
            ),
        ] {
            assert_eq!(kind_of(current, asked), expected, "{current} {asked:?}");
        }
        // Who has the address is sent to by it.
        let (to, broadcast, _) = sent(answered(&message(kind::REQUEST, OURS, &[])));
        assert_eq!((to, broadcast), (OURS, false));
    }

    #[test]
    fn a_client_that_only_asks_gets_no_lease() {
        let (_, _, ack) = sent(answered(&message(kind::INFORM, OURS, &[])));
        assert_eq!(ack[16..20], [0; 4]);
        let options = options(&ack);
        assert!(!options.contains_key(&code::LEASE));
        assert_eq!(options[&code::NAME_SERVERS], [10, 96, 0, 10]);
    }

    #[test]
    fn who_cannot_be_sent_to_hears_a_broadcast() {
        let mut asking = message(kind::DISCOVER, Ipv4Addr::UNSPECIFIED, &[]);
        asking[10] = BROADCAST_FLAG;
        let (to, broadcast, _) = sent(answered(&asking));
        assert_eq!((to, broadcast), (Ipv4Addr::BROADCAST, true));
    }

    #[test]
    fn nobody_else_is_answered() {
        let asking = message(kind::DISCOVER, Ipv4Addr::UNSPECIFIED, &[]);
        for (place, value) in [(0, BOOT_REPLY), (28, 0xaa), (24, 10), (HEAD_LEN, 0)] {
            let mut other = asking.clone();
            other[place] = value;
            assert_eq!(answered(&other), None, "byte {place}");
        }
        assert_eq!(answered(&message(7, OURS, &[])), None, "a release");
        let declined = answered(&message(kind::DECLINE, Ipv4Addr::UNSPECIFIED, &[]));
        assert_eq!(declined, Some(Answer::Declined));
    }

    #[test]
    fn what_does_not_fit_is_cut_between_names() {
        let mut link = link();
        link.resolver.search = (0..20)
            .map(|n| format!("{n:02}.{}.test", "x".repeat(60)))
            .collect();
        let plan = link.ipv4.clone().unwrap();
        let asking = message(kind::DISCOVER, Ipv4Addr::UNSPECIFIED, &[]);
        let (_, _, offer) = sent(answer(&link, &plan, &asking));
        assert!(offer.len() <= usize::from(PACKET_LEN_MIN) - HEADERS_LEN);
        let first = names(&link.resolver.search[..3], usize::MAX);
        assert_eq!(options(&offer)[&code::SEARCH], first);
        // A client that takes more gets more, in pieces.
        let size: &[u8] = &1500_u16.to_be_bytes();
        let asking = message(
            kind::DISCOVER,
            Ipv4Addr::UNSPECIFIED,
            &[(code::SIZE_MAX, size)],
        );
        link.resolver.search.truncate(10);
        let (_, _, offer) = sent(answer(&link, &plan, &asking));
        let all = names(&link.resolver.search, usize::MAX);
        assert_eq!(options(&offer)[&code::SEARCH], all);
    }

    #[test]
    fn of_many_routes_those_are_told_that_fit_and_the_default_route_is_one() {
        let link = link();
        let mut plan = link.ipv4.clone().unwrap();
        let to = |n| Ipv4Net::new(Ipv4Addr::new(10, 9, n, 0), 24).unwrap();
        plan.routes.extend((0..60).map(|n| (to(n), Some(SERVER))));
        let asking = message(kind::DISCOVER, Ipv4Addr::UNSPECIFIED, &[]);
        let (_, _, offer) = sent(answer(&link, &plan, &asking));
        assert!(offer.len() <= usize::from(PACKET_LEN_MIN) - HEADERS_LEN);
        let told = &options(&offer)[&code::ROUTES];
        let all: Vec<u8> = plan.routes.iter().flat_map(route).collect();
        assert!(told.len() >= 200 && all.starts_with(told), "{told:?}");
        assert_eq!(told[9..14], [0, 169, 254, 1, 1]);
        // Each of the others has eight bytes.
        assert_eq!((told.len() - 14) % 8, 0);
    }

    proptest! {
        #[test]
        fn no_message_is_answered_with_more_than_it_takes(
            head in prop::collection::vec(any::<u8>(), 0..300),
            tail in prop::collection::vec(any::<u8>(), 0..300),
            kind in 0_u8..10,
        ) {
            let _ = answered(&head);
            let mut asking = message(kind, OURS, &[]);
            asking.pop();
            asking.extend(tail);
            if let Some(Answer::Message { message, .. }) = answered(&asking) {
                prop_assert!(message.len() <= 1450 - HEADERS_LEN);
                let options = options(&message);
                prop_assert_eq!(&options[&code::SERVER], &SERVER.octets());
            }
        }
    }
}
