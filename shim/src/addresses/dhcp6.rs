//! A DHCPv6 server with one guest (RFC 8415): the pod's addresses, for as long as it lives.

use std::net::{IpAddr, Ipv6Addr};

use super::SERVER_MAC;
use super::dhcp4::names;
use super::plan::{Ipv6Plan, LinkPlan};

/// Associations of a message that are looked at, and addresses of each: a guest has one card here.
const ASSOCIATIONS_MAX: usize = 4;
const ADDRESSES_MAX: usize = 8;
const FOREVER: u32 = u32::MAX;
/// Nobody else answers here: a client need not wait for a better offer.
const PREFERENCE_MAX: u8 = 255;

/// Codes of options (RFC 8415; RFC 3646).
mod code {
    pub const CLIENT: u16 = 1;
    pub const SERVER: u16 = 2;
    pub const ASSOCIATION: u16 = 3;
    pub const ADDRESS: u16 = 5;
    pub const PREFERENCE: u16 = 7;
    pub const STATUS: u16 = 13;
    pub const RAPID: u16 = 14;
    pub const NAME_SERVERS: u16 = 23;
    pub const SEARCH: u16 = 24;
}

/// Kinds of messages.
mod kind {
    pub const SOLICIT: u8 = 1;
    pub const ADVERTISE: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const CONFIRM: u8 = 4;
    pub const RENEW: u8 = 5;
    pub const REBIND: u8 = 6;
    pub const REPLY: u8 = 7;
    pub const RELEASE: u8 = 8;
    pub const DECLINE: u8 = 9;
    pub const INFORMATION: u8 = 11;
}

/// Status codes.
mod status {
    pub const SUCCESS: u16 = 0;
    pub const NO_ADDRESS: u16 = 2;
    pub const NOT_ON_LINK: u16 = 4;
}

/// What is read of a client's message.
#[derive(Default)]
struct Request<'a> {
    kind: u8,
    transaction: [u8; 3],
    client: Option<&'a [u8]>,
    server: Option<&'a [u8]>,
    is_rapid: bool,
    associations: Vec<Association>,
}

/// An identity association: the client's name for a set of addresses.
#[derive(Default)]
struct Association {
    id: [u8; 4],
    addresses: Vec<Ipv6Addr>,
}

/// The answer to a message, if it asks for one.
pub fn answer(link: &LinkPlan, plan: &Ipv6Plan, message: &[u8]) -> Option<Vec<u8>> {
    let request = read(message)?;
    let names_us = request.server.is_some_and(|server| server == identity());
    // Which messages name a server: RFC 8415, 16.
    let (is_for_us, needs_client) = match request.kind {
        kind::SOLICIT | kind::CONFIRM | kind::REBIND => (request.server.is_none(), true),
        kind::REQUEST | kind::RENEW | kind::RELEASE | kind::DECLINE => (names_us, true),
        kind::INFORMATION => (request.server.is_none() || names_us, false),
        _ => (false, true),
    };
    if !is_for_us || (needs_client && request.client.is_none()) {
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
    let servers = link.resolver.servers.iter();
    let servers = servers.filter_map(|server| match server {
        IpAddr::V6(server) => Some(server.octets()),
        IpAddr::V4(_) => None,
    });
    put_some(
        &mut reply,
        code::NAME_SERVERS,
        &servers.flatten().collect::<Vec<u8>>(),
    );
    put_some(&mut reply, code::SEARCH, &names(&link.resolver.search));
    Some(reply)
}

/// The part that differs from one kind of message to the other.
fn add_body(reply: &mut Vec<u8>, plan: &Ipv6Plan, request: &Request<'_>) {
    match request.kind {
        kind::SOLICIT | kind::REQUEST | kind::RENEW | kind::REBIND => {
            if request.kind == kind::SOLICIT {
                put(reply, code::PREFERENCE, &[PREFERENCE_MAX]);
            }
            for (place, association) in request.associations.iter().enumerate() {
                // All addresses are in the first one: none can be in two.
                let ours = if place == 0 {
                    plan.addresses.as_slice()
                } else {
                    &[]
                };
                put(reply, code::ASSOCIATION, &association.granted(ours));
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
    /// The association with addresses; those that the client had in it and cannot have end at once.
    fn granted(&self, ours: &[Ipv6Addr]) -> Vec<u8> {
        let mut body = self.id.to_vec();
        body.extend(FOREVER.to_be_bytes());
        body.extend(FOREVER.to_be_bytes());
        let foreign = self.addresses.iter().filter(|had| !ours.contains(had));
        let lives = ours.iter().map(|ip| (ip, FOREVER));
        for (ip, life) in lives.chain(foreign.map(|ip| (ip, 0))) {
            let mut address = ip.octets().to_vec();
            address.extend(life.to_be_bytes());
            address.extend(life.to_be_bytes());
            put(&mut body, code::ADDRESS, &address);
        }
        if ours.is_empty() {
            put(&mut body, code::STATUS, &status::NO_ADDRESS.to_be_bytes());
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

fn read(message: &[u8]) -> Option<Request<'_>> {
    let (head, options) = message.split_at_checked(4)?;
    let [kind, transaction @ ..] = head else {
        return None;
    };
    let mut request = Request {
        kind: *kind,
        transaction: transaction.try_into().ok()?,
        ..Request::default()
    };
    let mut rest = options;
    while let Some((code, value)) = take_option(&mut rest)? {
        match code {
            code::CLIENT => request.client = Some(value),
            code::SERVER => request.server = Some(value),
            code::RAPID => request.is_rapid = true,
            code::ASSOCIATION if request.associations.len() < ASSOCIATIONS_MAX => {
                request.associations.push(association(value)?);
            }
            _ => {}
        }
    }
    Some(request)
}

fn association(value: &[u8]) -> Option<Association> {
    let mut association = Association {
        id: value.get(..4)?.try_into().ok()?,
        ..Association::default()
    };
    // Behind the two times.
    let mut rest = value.get(12..)?;
    while let Some((code, value)) = take_option(&mut rest)? {
        if code == code::ADDRESS && association.addresses.len() < ADDRESSES_MAX {
            let address: [u8; 16] = value.get(..16)?.try_into().ok()?;
            association.addresses.push(address.into());
        }
    }
    Some(association)
}

/// The next option; `Some(None)` at the end, None when the message is broken.
fn take_option<'a>(rest: &mut &'a [u8]) -> Option<Option<(u16, &'a [u8])>> {
    if rest.is_empty() {
        return Some(None);
    }
    let (head, after) = rest.split_at_checked(4)?;
    let (&[a, b], &[c, d]) = (head.first_chunk::<2>()?, head.last_chunk::<2>()?);
    let (value, after) = after.split_at_checked(usize::from(u16::from_be_bytes([c, d])))?;
    *rest = after;
    Some(Some((u16::from_be_bytes([a, b]), value)))
}

fn put_some(message: &mut Vec<u8>, code: u16, value: &[u8]) {
    if !value.is_empty() {
        put(message, code, value);
    }
}

fn put(message: &mut Vec<u8>, code: u16, value: &[u8]) {
    message.extend(code.to_be_bytes());
    message.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
    message.extend(value);
}

#[cfg(test)]
pub mod tests {
    use podvisor_seed::{Nic, Resolver};
    use proptest::prelude::*;

    use super::super::frame::tests::GUEST;
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
