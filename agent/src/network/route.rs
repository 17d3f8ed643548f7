//! Routes and policy rules.

use podvisor_proto::agent::v1::{NextHop, Route, Rule};

use super::message::{CREATE, EXCLUSIVE, Message, REPLACE, attributes};
use super::socket::RouteSocket;
use super::{FAMILY_IPV4, FAMILY_IPV6, Ip, NetworkError, family_of, link, prefix_len};

/// RTM_NEWROUTE and RTM_NEWRULE (linux/rtnetlink.h).
const NEW_ROUTE: u16 = 24;
const NEW_RULE: u16 = 32;
/// RTA_*.
const DESTINATION: u16 = 1;
const INTERFACE: u16 = 4;
const GATEWAY: u16 = 5;
const PRIORITY: u16 = 6;
const PREFERRED_SOURCE: u16 = 7;
const METRICS: u16 = 8;
const MULTIPATH: u16 = 9;
const TABLE: u16 = 15;
const VIA: u16 = 18;
/// RTPROT_STATIC, RT_TABLE_MAIN, RT_TABLE_LOCAL.
const PROTOCOL_STATIC: u8 = 4;
const TABLE_MAIN: u32 = 254;
const TABLE_LOCAL: u32 = 255;
/// RTN_UNICAST and the kinds that the kernel makes by itself: local, broadcast, anycast, multicast.
const KIND_UNICAST: u8 = 1;
const KERNEL_KINDS: std::ops::RangeInclusive<u8> = 2..=5;
/// RTNH_F_ONLINK.
const ON_LINK: u8 = 4;

/// Adds or replaces a route. One that the kernel makes by itself is left to it.
///
/// # Errors
///
/// [`NetworkError`] naming the route.
pub fn add(socket: &mut RouteSocket, route: &Route) -> Result<(), NetworkError> {
    let kind = u8::try_from(route.kind).unwrap_or(u8::MAX);
    if KERNEL_KINDS.contains(&kind) || route.table == TABLE_LOCAL {
        return Ok(());
    }
    let mut hops = Vec::with_capacity(route.next_hops.len());
    for hop in &route.next_hops {
        hops.push((hop, link::index_of(&hop.interface)?));
    }
    let message = route_message(route, &hops).ok_or_else(|| NetworkError::Malformed {
        object: describe(route),
        reason: "addresses, numbers and next hops do not fit together",
    })?;
    socket.configure(message, || describe(route))
}

/// Whether a route's next hops have to be reachable by others when it is added.
#[must_use]
pub fn has_gateway(route: &Route) -> bool {
    route.next_hops.iter().any(|hop| !hop.gateway.is_empty())
}

fn route_message(route: &Route, hops: &[(&NextHop, i32)]) -> Option<Message> {
    let family = if route.ipv6 { FAMILY_IPV6 } else { FAMILY_IPV4 };
    let fits = |address: &[u8]| address.is_empty() || family_of(address) == Some(family);
    if !fits(&route.destination) || !fits(&route.source) {
        return None;
    }
    let or_default = |number: u32, default| match u8::try_from(number).ok()? {
        0 => Some(default),
        number => Some(number),
    };
    let table = if route.table == 0 {
        TABLE_MAIN
    } else {
        route.table
    };
    let flags = match hops {
        [(hop, _)] if hop.onlink => ON_LINK,
        _ => 0,
    };
    // The header's table has eight bits; the attribute says the whole number.
    let mut fixed = vec![
        family,
        prefix_len(route.prefix_len, route.destination.len())?,
        0,
        0,
        u8::try_from(table).unwrap_or(0),
        or_default(route.protocol, PROTOCOL_STATIC)?,
        u8::try_from(route.scope).ok()?,
        or_default(route.kind, KIND_UNICAST)?,
    ];
    fixed.extend(u32::from(flags).to_ne_bytes());
    let mut message = Message::new(NEW_ROUTE, CREATE | REPLACE, &fixed)
        .optional(DESTINATION, &route.destination)
        .optional(PREFERRED_SOURCE, &route.source)
        .optional(METRICS, &route.metrics)
        .number(TABLE, table);
    if route.metric != 0 {
        message = message.number(PRIORITY, route.metric);
    }
    Some(match hops {
        [] => message,
        [(hop, index)] => {
            let (kind, gateway) = gateway(hop, family)?;
            message
                .attribute(INTERFACE, &index.to_ne_bytes())
                .optional(kind, &gateway)
        }
        several => message.attribute(MULTIPATH, &multipath(several, family)?),
    })
}

/// `struct rtnexthop` of each next hop, its gateway behind it.
fn multipath(hops: &[(&NextHop, i32)], family: u8) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for (hop, index) in hops {
        let (kind, gateway) = gateway(hop, family)?;
        let gateway = attributes().optional(kind, &gateway).into_bytes();
        let len = u16::try_from(8 + gateway.len()).ok()?;
        let more_weight = u8::try_from(hop.weight.saturating_sub(1)).ok()?;
        bytes.extend(len.to_ne_bytes());
        bytes.extend([if hop.onlink { ON_LINK } else { 0 }, more_weight]);
        bytes.extend(index.to_ne_bytes());
        bytes.extend(gateway);
    }
    Some(bytes)
}

/// The attribute for a next hop's gateway, empty without one.
fn gateway(hop: &NextHop, family: u8) -> Option<(u16, Vec<u8>)> {
    if hop.gateway.is_empty() || family_of(&hop.gateway)? == family {
        return Some((GATEWAY, hop.gateway.clone()));
    }
    // One of the other family: `struct rtvia`.
    let mut via = u16::from(family_of(&hop.gateway)?).to_ne_bytes().to_vec();
    via.extend(&hop.gateway);
    Some((VIA, via))
}

fn describe(route: &Route) -> String {
    let mut text = match route.destination.as_slice() {
        [] => format!(
            "route default ({})",
            if route.ipv6 { "IPv6" } else { "IPv4" }
        ),
        destination => format!("route {}/{}", Ip(destination), route.prefix_len),
    };
    for hop in &route.next_hops {
        if !hop.gateway.is_empty() {
            text += &format!(" via {}", Ip(&hop.gateway));
        }
        text = text + " on " + &hop.interface;
    }
    text
}

/// Adds a policy rule; one that exists already is left as it is.
///
/// # Errors
///
/// [`NetworkError`] naming the rule.
pub fn add_rule(socket: &mut RouteSocket, rule: &Rule) -> Result<(), NetworkError> {
    let message = Message::new(NEW_RULE, CREATE | EXCLUSIVE, &rule.message);
    match socket.request(message) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        Err(source) => Err(NetworkError::Kernel {
            object: format!("rule {} for table {}", rule.priority, rule.table),
            source,
        }),
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(gateway: &[u8], interface: &str) -> NextHop {
        NextHop {
            gateway: gateway.to_vec(),
            interface: interface.to_owned(),
            onlink: false,
            weight: 1,
        }
    }

    fn bytes(route: &Route) -> Option<Vec<u8>> {
        let hops: Vec<_> = route.next_hops.iter().zip(2..).collect();
        route_message(route, &hops).map(|message| message.finish(1))
    }

    fn default_route() -> Route {
        Route {
            next_hops: vec![hop(&[10, 4, 0, 1], "eth0")],
            ..Route::default()
        }
    }

    #[test]
    fn a_default_route_carries_gateway_and_interface() {
        let bytes = bytes(&default_route()).unwrap();
        assert_eq!(
            bytes[16..24],
            [FAMILY_IPV4, 0, 0, 0, 254, PROTOCOL_STATIC, 0, KIND_UNICAST]
        );
        let ends = [8, 0, 4, 0, 2, 0, 0, 0, 8, 0, 5, 0, 10, 4, 0, 1];
        assert_eq!(bytes[bytes.len() - 16..], ends);
    }

    #[test]
    fn a_gateway_of_the_other_family_goes_through_via() {
        let route = Route {
            next_hops: vec![hop(&[0xfe; 16], "eth0")],
            ..Route::default()
        };
        let bytes = bytes(&route).unwrap();
        let via = &bytes[bytes.len() - 24..];
        assert_eq!(via[0..6], [22, 0, 18, 0, FAMILY_IPV6, 0]);
    }

    #[test]
    fn several_next_hops_lie_behind_each_other_with_their_weights() {
        let mut route = default_route();
        route.next_hops.push(NextHop {
            weight: 5,
            onlink: true,
            ..hop(&[10, 5, 0, 1], "net1")
        });
        let bytes = bytes(&route).unwrap();
        let hops = &bytes[bytes.len() - 36..];
        let first = [16, 0, 0, 0, 2, 0, 0, 0, 8, 0, 5, 0, 10, 4, 0, 1];
        let second = [16, 0, ON_LINK, 4, 3, 0, 0, 0, 8, 0, 5, 0, 10, 5, 0, 1];
        assert_eq!(hops, [&[36, 0, 9, 0][..], &first, &second].concat());
    }

    #[test]
    fn addresses_of_two_families_are_refused() {
        let route = Route {
            destination: vec![0; 16],
            prefix_len: 64,
            ..default_route()
        };
        assert!(bytes(&route).is_none());
    }

    #[test]
    fn an_error_names_the_route() {
        assert_eq!(
            describe(&default_route()),
            "route default (IPv4) via 10.4.0.1 on eth0"
        );
    }
}
