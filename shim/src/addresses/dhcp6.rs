//! A DHCPv6 server with one guest (RFC 8415): the pod's addresses, for as long as it lives.

mod message;

use std::net::Ipv6Addr;

use self::message::{Association, Request, code, kind, put, put_some, read};
use super::SERVER_MAC;
use super::plan::{Ipv6Plan, LinkPlan};
use super::wire::names;

/// What a message has beside itself: the headers of IPv6 and UDP.
const HEADERS_LEN: usize = 48;
const FOREVER: u32 = u32::MAX;
/// Nobody else answers here: a client need not wait for a better offer.
const PREFERENCE_MAX: u8 = 255;

/// Status codes.
mod status {
    pub const SUCCESS: u16 = 0;
    pub const NO_ADDRESS: u16 = 2;
    pub const NOT_ON_LINK: u16 = 4;
    pub const NO_PREFIX: u16 = 6;
}

/// The answer to a message, if it asks for one.
pub fn answer(link: &LinkPlan, plan: &Ipv6Plan, message: &[u8]) -> Option<Vec<u8>> {
    let request = read(message)?;
    if !is_to_be_answered(&request) {
        return None;
    }
    let kind = match request.kind {
        kind::SOLICIT if !request.is_rapid => kind::ADVERTISE,
        _ => kind::REPLY,
    };
    let mut reply = vec![kind];
    reply.extend(request.transaction);
    put(&mut reply, code::SERVER, &identity());
    if let Some(client) = request.client {
        put(&mut reply, code::CLIENT, client);
    }
    add_body(&mut reply, plan, &request);
    if request.kind == kind::SOLICIT && request.is_rapid {
        put(&mut reply, code::RAPID, &[]);
    }
    put_some(&mut reply, code::NAME_SERVERS, &link.ipv6_servers());
    // Behind the option's own head.
    let room = usize::from(link.mtu).saturating_sub(HEADERS_LEN + reply.len() + 4);
    let search = names(&link.resolver.search, room);
    put_some(&mut reply, code::SEARCH, &search);
    Some(reply)
}

/// Which messages say what: RFC 8415, 16; which are left without an answer: 18.3.
fn is_to_be_answered(request: &Request<'_>) -> bool {
    let names_us = request.server.is_some_and(|server| server == identity());
    let has_client = request.client.is_some();
    let has_address = || request.associations.iter().any(|a| !a.addresses.is_empty());
    match request.kind {
        kind::SOLICIT | kind::REBIND => has_client && request.server.is_none(),
        kind::CONFIRM => has_client && request.server.is_none() && has_address(),
        kind::REQUEST | kind::RENEW | kind::RELEASE | kind::DECLINE => has_client && names_us,
        kind::INFORMATION => {
            request.associations.is_empty() && (request.server.is_none() || names_us)
        }
        _ => false,
    }
}

/// The part that differs from one kind of message to the other.
fn add_body(reply: &mut Vec<u8>, plan: &Ipv6Plan, request: &Request<'_>) {
    match request.kind {
        kind::SOLICIT | kind::REQUEST | kind::RENEW | kind::REBIND => {
            if request.kind == kind::SOLICIT && !request.is_rapid {
                put(reply, code::PREFERENCE, &[PREFERENCE_MAX]);
            }
            // What a client only wishes for has not to be taken from it.
            let ends_others = matches!(request.kind, kind::RENEW | kind::REBIND);
            // All addresses are in the first one: none can be in two.
            let mut ours = plan.addresses.as_slice();
            for association in &request.associations {
                let granted = match association.kind {
                    code::ASSOCIATION => std::mem::take(&mut ours),
                    _ => &[],
                };
                let answer = association.granted(granted, ends_others);
                put(reply, association.kind, &answer);
            }
        }
        kind::CONFIRM => {
            let mut asked = request.associations.iter().flat_map(|a| &a.addresses);
            let all_ours = asked.all(|address| plan.addresses.contains(address));
            let status = if all_ours {
                status::SUCCESS
            } else {
                status::NOT_ON_LINK
            };
            put(reply, code::STATUS, &status.to_be_bytes());
        }
        kind::RELEASE | kind::DECLINE => {
            put(reply, code::STATUS, &status::SUCCESS.to_be_bytes());
        }
        _ => {}
    }
}

impl Association {
    /// The association with addresses. Those that the client had in it and cannot have end at once,
    /// if `ends_others`.
    fn granted(&self, ours: &[Ipv6Addr], ends_others: bool) -> Vec<u8> {
        let mut body = self.id.to_vec();
        if self.kind != code::TEMPORARY {
            body.extend(FOREVER.to_be_bytes());
            body.extend(FOREVER.to_be_bytes());
        }
        let foreign = self.addresses.iter();
        let foreign = foreign.filter(|had| ends_others && !ours.contains(had));
        let lives = ours.iter().map(|ip| (ip, FOREVER));
        for (ip, life) in lives.chain(foreign.map(|ip| (ip, 0))) {
            let mut address = ip.octets().to_vec();
            address.extend(life.to_be_bytes());
            address.extend(life.to_be_bytes());
            put(&mut body, code::ADDRESS, &address);
        }
        if ours.is_empty() {
            let status = match self.kind {
                code::DELEGATION => status::NO_PREFIX,
                _ => status::NO_ADDRESS,
            };
            put(&mut body, code::STATUS, &status.to_be_bytes());
        }
        body
    }
}

/// Our name: a DUID of the link-layer kind (RFC 8415, 11.4), for Ethernet.
fn identity() -> Vec<u8> {
    let mut duid = vec![0, 3, 0, 1];
    duid.extend(SERVER_MAC);
    duid
}

#[cfg(test)]
pub mod tests {
    use podvisor_seed::{Nic, Resolver};
    use proptest::prelude::*;

    use super::super::frame::tests::GUEST;
    use super::message::{DUID_LEN_MAX, take_option};
    use super::*;

    const CLIENT: [u8; 4] = [9, 9, 9, 9];

    fn link() -> LinkPlan {
        let nic = Nic {
            name: "eth0".into(),
            mac: GUEST,
            mtu: 1500,
            addresses: vec!["fd00::5/64".parse().unwrap()],
            routes: Vec::new(),
        };
        let resolver = Resolver::parse("nameserver fd00::a\nnameserver 10.0.0.1\nsearch a.test");
        LinkPlan::new(&nic, &resolver, "web", &[])
    }

    fn answered(message: &[u8]) -> Option<Vec<u8>> {
        let link = link();
        answer(&link, link.ipv6.as_ref().unwrap(), message)
    }

    /// An association with one address.
    fn wanting(address: &str) -> Vec<u8> {
        let mut value = vec![0; 12];
        value[3] = 7;
        let ip: Ipv6Addr = address.parse().unwrap();
        put(
            &mut value,
            code::ADDRESS,
            &[&ip.octets()[..], &[0; 8]].concat(),
        );
        value
    }

    /// A client's message.
    pub fn message(kind: u8, options: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = vec![kind, 1, 2, 3];
        put(&mut message, code::CLIENT, &CLIENT);
        for (code, value) in options {
            put(&mut message, *code, value);
        }
        message
    }

    fn options(message: &[u8]) -> Vec<(u16, Vec<u8>)> {
        let mut rest = &message[4..];
        let mut options = Vec::new();
        while let Some((code, value)) = take_option(&mut rest).unwrap() {
            options.push((code, value.to_vec()));
        }
        options
    }

    fn find(message: &[u8], code: u16) -> Option<Vec<u8>> {
        let found = options(message)
            .into_iter()
            .find(|(known, _)| *known == code);
        found.map(|(_, value)| value)
    }

    fn addresses(message: &[u8]) -> Vec<(Ipv6Addr, u32)> {
        let association = find(message, code::ASSOCIATION).unwrap();
        let mut rest = &association[12..];
        let mut addresses = Vec::new();
        while let Some((code, value)) = take_option(&mut rest).unwrap() {
            if code == code::ADDRESS {
                let ip: [u8; 16] = value[..16].try_into().unwrap();
                let life = u32::from_be_bytes(value[16..20].try_into().unwrap());
                addresses.push((ip.into(), life));
            }
        }
        addresses
    }

    #[test]
    fn the_pods_address_is_advertised_and_granted() {
        let association: &[u8] = &[0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0];
        let ours: Ipv6Addr = "fd00::5".parse().unwrap();
        let advertised =
            answered(&message(kind::SOLICIT, &[(code::ASSOCIATION, association)])).unwrap();
        assert_eq!(advertised[..4], [kind::ADVERTISE, 1, 2, 3]);
        assert_eq!(addresses(&advertised), [(ours, FOREVER)]);
        assert_eq!(find(&advertised, code::CLIENT).unwrap(), CLIENT);
        let server = find(&advertised, code::SERVER).unwrap();
        let dns = find(&advertised, code::NAME_SERVERS).unwrap();
        assert_eq!(dns, "fd00::a".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(find(&advertised, code::SEARCH).unwrap(), b"\x01a\x04test\0");
        for (kind, server) in [
            (kind::REQUEST, Some(&server)),
            (kind::RENEW, Some(&server)),
            (kind::REBIND, None),
        ] {
            let mut asked = vec![(code::ASSOCIATION, association)];
            asked.extend(server.map(|server| (code::SERVER, server.as_slice())));
            let reply = answered(&message(kind, &asked)).unwrap();
            assert_eq!(
                (reply[0], addresses(&reply)),
                (kind::REPLY, vec![(ours, FOREVER)])
            );
        }
    }

    #[test]
    fn who_is_in_a_hurry_gets_it_at_once() {
        let association = wanting("fd00::5");
        let asked = [
            (code::ASSOCIATION, association.as_slice()),
            (code::RAPID, &[]),
        ];
        let reply = answered(&message(kind::SOLICIT, &asked)).unwrap();
        assert_eq!(reply[0], kind::REPLY);
        assert!(find(&reply, code::RAPID).is_some());
    }

    #[test]
    fn an_address_of_an_earlier_pod_ends() {
        let old: Ipv6Addr = "fd00::99".parse().unwrap();
        let association = wanting("fd00::99");
        let reply = answered(&message(kind::REBIND, &[(code::ASSOCIATION, &association)])).unwrap();
        assert_eq!(addresses(&reply)[1], (old, 0));
        let status = |address| {
            let association = wanting(address);
            let confirm = message(
                kind::CONFIRM,
                &[(code::ASSOCIATION, association.as_slice())],
            );
            find(&answered(&confirm).unwrap(), code::STATUS).unwrap()
        };
        assert_eq!(status("fd00::99"), status::NOT_ON_LINK.to_be_bytes());
        assert_eq!(status("fd00::5"), status::SUCCESS.to_be_bytes());
    }

    #[test]
    fn a_second_association_has_no_address() {
        let association = wanting("fd00::5");
        let asked = [
            (code::ASSOCIATION, association.as_slice()),
            (code::ASSOCIATION, &[0; 12]),
        ];
        let advertised = answered(&message(kind::SOLICIT, &asked)).unwrap();
        let mut associations = options(&advertised).into_iter();
        let (_, second) = associations
            .rfind(|(code, _)| *code == code::ASSOCIATION)
            .unwrap();
        assert_eq!(second[12..], [0, 13, 0, 2, 0, 2]);
    }

    #[test]
    fn an_address_that_is_only_wished_for_is_not_taken_away() {
        let association = wanting("fd00::99");
        let solicit = message(kind::SOLICIT, &[(code::ASSOCIATION, &association)]);
        let ours: Ipv6Addr = "fd00::5".parse().unwrap();
        assert_eq!(addresses(&answered(&solicit).unwrap()), [(ours, FOREVER)]);
    }

    #[test]
    fn there_are_no_prefixes_and_no_temporary_addresses() {
        let asked = [
            (code::DELEGATION, &[7_u8; 12][..]),
            (code::TEMPORARY, &[8; 4]),
            (code::ASSOCIATION, &[9; 12]),
        ];
        let reply = answered(&message(kind::SOLICIT, &asked)).unwrap();
        let delegation = find(&reply, code::DELEGATION).unwrap();
        assert_eq!(
            (&delegation[..4], &delegation[12..]),
            (&[7; 4][..], &[0, 13, 0, 2, 0, 6][..])
        );
        let temporary = find(&reply, code::TEMPORARY).unwrap();
        assert_eq!(temporary, [8, 8, 8, 8, 0, 13, 0, 2, 0, 2]);
        assert_eq!(addresses(&reply).len(), 1);
    }

    #[test]
    fn a_reply_is_no_longer_than_a_packet() {
        let mut link = link();
        link.mtu = 1280;
        link.resolver.search = (0..32)
            .map(|n| format!("{}.n{n}", "x".repeat(60)))
            .collect();
        let plan = link.ipv6.clone().unwrap();
        let asked = message(kind::SOLICIT, &[(code::ASSOCIATION, &[0; 12])]);
        let reply = answer(&link, &plan, &asked).unwrap();
        assert!(reply.len() + HEADERS_LEN <= 1280, "{}", reply.len());
        let search = find(&reply, code::SEARCH).unwrap();
        let all = names(&link.resolver.search, usize::MAX);
        assert!(search.len() > 1000 && all.starts_with(&search));
    }

    #[test]
    fn what_asks_for_nothing_or_says_too_much_is_not_answered() {
        let empty = message(kind::CONFIRM, &[(code::ASSOCIATION, &[0; 12])]);
        assert_eq!(answered(&empty), None);
        let association = message(kind::INFORMATION, &[(code::ASSOCIATION, &[0; 12])]);
        assert_eq!(answered(&association), None);
        let long = message(kind::SOLICIT, &[(code::CLIENT, &[1; DUID_LEN_MAX + 1])]);
        assert_eq!(answered(&long), None);
    }

    #[test]
    fn information_needs_no_client_and_what_is_for_others_no_answer() {
        let reply = answered(&[kind::INFORMATION, 1, 2, 3]).unwrap();
        assert!(find(&reply, code::NAME_SERVERS).is_some());
        assert_eq!(answered(&[kind::SOLICIT, 1, 2, 3]), None);
        assert_eq!(
            answered(&message(kind::REQUEST, &[(code::SERVER, &[1, 2])])),
            None
        );
        assert_eq!(answered(&message(kind::REPLY, &[])), None);
    }

    proptest! {
        #[test]
        fn no_answer_is_longer_than_what_was_asked_for(
            kind in 0_u8..14,
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            associations in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..10),
        ) {
            let _ = answered(&bytes);
            let asked: Vec<(u16, &[u8])> = associations.iter().map(|a| (code::ASSOCIATION, a.as_slice())).collect();
            let mut asking = message(kind, &asked);
            asking.extend(bytes);
            if let Some(reply) = answered(&asking) {
                prop_assert!(reply.len() < 2048);
            }
        }
    }
}
