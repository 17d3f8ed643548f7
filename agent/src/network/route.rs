//! Routes and policy rules.

use podvisor_proto::agent::v1::{Route, Rule};

use super::message::{CREATE, EXCLUSIVE, Message, REPLACE, nested};
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
const TABLE: u16 = 15;
const VIA: u16 = 18;
/// RTAX_MTU.
const METRIC_MTU: u16 = 2;
/// RTPROT_STATIC, RT_TABLE_MAIN, RT_TABLE_LOCAL.
const PROTOCOL_STATIC: u8 = 4;
const TABLE_MAIN: u32 = 254;
const TABLE_LOCAL: u32 = 255;
/// RTN_UNICAST and the kinds that the kernel makes by itself: local, broadcast, anycast, multicast.
const KIND_UNICAST: u8 = 1;
const KERNEL_KINDS: std::ops::RangeInclusive<u8> = 2..=5;
/// RTNH_F_ONLINK.
const ON_LINK: u32 = 4;
/// FRA_* and FR_ACT_TO_TBL (linux/fib_rules.h).
const RULE_DESTINATION: u16 = 1;
const RULE_SOURCE: u16 = 2;
const RULE_IIF: u16 = 3;
const RULE_PRIORITY: u16 = 6;
const RULE_FWMARK: u16 = 10;
const RULE_TABLE: u16 = 15;
const RULE_OIF: u16 = 17;
const ACTION_TO_TABLE: u8 = 1;

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
    let index = match route.interface.as_str() {
        "" => None,
        name => Some(link::index_of(name)?),
    };
    let message = route_message(route, index).ok_or_else(|| NetworkError::Malformed {
        object: describe(route),
        reason: "addresses, prefix length or scope do not fit together",
    })?;
    socket.configure(message, || describe(route))
}

fn route_message(route: &Route, index: Option<i32>) -> Option<Message> {
    let family = if route.ipv6 { FAMILY_IPV6 } else { FAMILY_IPV4 };
    let fits = |address: &[u8]| address.is_empty() || family_of(address) == Some(family);
    if !fits(&route.destination) || !fits(&route.source) {
        return None;
    }
    let bits = prefix_len(route.prefix_len, route.destination.len())?;
    let kind = if route.kind == 0 {
        KIND_UNICAST
    } else {
        u8::try_from(route.kind).ok()?
    };
    let scope = u8::try_from(route.scope).ok()?;
    let table = if route.table == 0 {
        TABLE_MAIN
    } else {
        route.table
    };
    let flags = if route.onlink { ON_LINK } else { 0 };
    // The header's table has eight bits; the attribute says the whole number.
    let mut fixed = vec![
        family,
        bits,
        0,
        0,
        u8::try_from(table).unwrap_or(0),
        PROTOCOL_STATIC,
        scope,
        kind,
    ];
    fixed.extend(flags.to_ne_bytes());
    let mut message = Message::new(NEW_ROUTE, CREATE | REPLACE, &fixed)
        .optional(DESTINATION, &route.destination)
        .optional(PREFERRED_SOURCE, &route.source)
        .number(TABLE, table);
    if let Some(index) = index {
        message = message.attribute(INTERFACE, &index.to_ne_bytes());
    }
    if route.metric != 0 {
        message = message.number(PRIORITY, route.metric);
    }
    if route.mtu != 0 {
        message = message.attribute(METRICS, &nested(METRIC_MTU, &route.mtu.to_ne_bytes()));
    }
    if route.gateway.is_empty() || family_of(&route.gateway)? == family {
        return Some(message.optional(GATEWAY, &route.gateway));
    }
    // A gateway of the other family: `struct rtvia`.
    let mut via = u16::from(family_of(&route.gateway)?).to_ne_bytes().to_vec();
    via.extend(&route.gateway);
    Some(message.attribute(VIA, &via))
}

fn describe(route: &Route) -> String {
    let mut text = match route.destination.as_slice() {
        [] => format!(
            "route default ({})",
            if route.ipv6 { "IPv6" } else { "IPv4" }
        ),
        destination => format!("route {}/{}", Ip(destination), route.prefix_len),
    };
    if !route.gateway.is_empty() {
        text += &format!(" via {}", Ip(&route.gateway));
    }
    text + " on " + &route.interface
}

/// Adds a policy rule; one that exists already is left as it is.
///
/// # Errors
///
/// [`NetworkError`] naming the rule.
pub fn add_rule(socket: &mut RouteSocket, rule: &Rule) -> Result<(), NetworkError> {
    let object = || format!("rule {} for table {}", rule.priority, rule.table);
    let message = rule_message(rule).ok_or_else(|| NetworkError::Malformed {
        object: object(),
        reason: "addresses and prefix lengths do not fit together",
    })?;
    match socket.request(message) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        Err(source) => Err(NetworkError::Kernel {
            object: object(),
            source,
        }),
        Ok(()) => Ok(()),
    }
}

fn rule_message(rule: &Rule) -> Option<Message> {
    let family = if rule.ipv6 { FAMILY_IPV6 } else { FAMILY_IPV4 };
    let fits = |address: &[u8]| address.is_empty() || family_of(address) == Some(family);
    if !fits(&rule.source) || !fits(&rule.destination) {
        return None;
    }
    let destination_bits = prefix_len(rule.destination_prefix_len, rule.destination.len())?;
    let source_bits = prefix_len(rule.source_prefix_len, rule.source.len())?;
    let table = u8::try_from(rule.table).unwrap_or(0);
    let mut fixed = vec![
        family,
        destination_bits,
        source_bits,
        0,
        table,
        0,
        0,
        ACTION_TO_TABLE,
    ];
    fixed.extend([0; 4]);
    let mut message = Message::new(NEW_RULE, CREATE | EXCLUSIVE, &fixed)
        .optional(RULE_DESTINATION, &rule.destination)
        .optional(RULE_SOURCE, &rule.source)
        .number(RULE_PRIORITY, rule.priority)
        .number(RULE_TABLE, rule.table);
    if rule.fwmark != 0 {
        message = message.number(RULE_FWMARK, rule.fwmark);
    }
    for (kind, name) in [(RULE_IIF, &rule.iif), (RULE_OIF, &rule.oif)] {
        if !name.is_empty() {
            message = message.name(kind, name);
        }
    }
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn default_route() -> Route {
        Route {
            gateway: vec![10, 4, 0, 1],
            interface: "eth0".to_owned(),
            ..Route::default()
        }
    }

    #[test]
    fn a_default_route_carries_gateway_and_interface() {
        let bytes = route_message(&default_route(), Some(2)).unwrap().finish(1);
        assert_eq!(
            bytes[16..24],
            [FAMILY_IPV4, 0, 0, 0, 254, PROTOCOL_STATIC, 0, KIND_UNICAST]
        );
        let ends = [8, 0, 5, 0, 10, 4, 0, 1];
        assert_eq!(bytes[bytes.len() - 8..], ends);
    }

    #[test]
    fn a_gateway_of_the_other_family_goes_through_via() {
        let route = Route {
            gateway: vec![0xfe; 16],
            ..default_route()
        };
        let bytes = route_message(&route, Some(2)).unwrap().finish(1);
        let via = &bytes[bytes.len() - 24..];
        assert_eq!(via[0..6], [22, 0, 18, 0, FAMILY_IPV6, 0]);
    }

    #[test]
    fn addresses_of_two_families_are_refused() {
        let route = Route {
            destination: vec![0; 16],
            prefix_len: 64,
            ..default_route()
        };
        assert!(route_message(&route, None).is_none());
        let rule = Rule {
            ipv6: true,
            source: vec![10, 0, 0, 1],
            ..Rule::default()
        };
        assert!(rule_message(&rule).is_none());
    }

    #[test]
    fn an_error_names_the_route() {
        assert_eq!(
            describe(&default_route()),
            "route default (IPv4) via 10.4.0.1 on eth0"
        );
    }
}
