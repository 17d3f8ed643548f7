//! A namespace's policy rules. They name no interface by its number: as they are, they mean the
//! same in the guest.

use netlink_packet_core::Emitable as _;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use podvisor_proto::agent::v1::Rule;

use super::super::HostError;
use super::super::route_socket::{RouteError, RouteSocket};

/// Priorities and tables of the three rules that every kernel makes itself
/// (`fib_default_rules_init`).
const KERNEL_RULES: [(u32, u32); 3] = [(0, 255), (32766, 254), (32767, 253)];

/// The rules of a family that somebody has made.
pub(super) fn rules(
    socket: &mut RouteSocket,
    family: AddressFamily,
) -> Result<Vec<Rule>, HostError> {
    let mut request = RuleMessage::default();
    request.header.family = family;
    let answers = match socket.dump("listing rules", RouteNetlinkMessage::GetRule(request)) {
        // A kernel without policy routing has no rules to carry over.
        Err(RouteError::Refused {
            source: nix::Error::EOPNOTSUPP,
            ..
        }) => Vec::new(),
        other => other?,
    };
    let rules = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewRule(message) => rule(message),
        _ => None,
    });
    Ok(rules.collect())
}

fn rule(mut message: RuleMessage) -> Option<Rule> {
    let (mut priority, mut table) = (0, u32::from(message.header.table));
    let mut is_plain = message.header.action == RuleAction::ToTable;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::Protocol(_) => {}
            _ => is_plain = false,
        }
    }
    if is_plain && KERNEL_RULES.contains(&(priority, table)) {
        return None;
    }
    // The others are what the kernel found out about a rule's interfaces.
    message.header.flags &= RuleFlags::Invert;
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    Some(Rule {
        priority,
        table,
        message: bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_rules_are_not_carried() {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.action = RuleAction::ToTable;
        message.header.table = 254;
        let suppress = RuleAttribute::SuppressPrefixLen(u32::MAX);
        message.attributes = vec![RuleAttribute::Priority(32766), suppress];
        assert_eq!(rule(message.clone()), None);
        message.attributes = vec![RuleAttribute::Priority(100)];
        let carried = rule(message.clone()).unwrap();
        assert_eq!((carried.priority, carried.table), (100, 254));
        message.attributes = vec![RuleAttribute::Priority(32766), RuleAttribute::FwMark(1)];
        assert!(rule(message).is_some());
    }

    #[test]
    fn a_rule_goes_over_as_it_is_but_for_what_the_kernel_found_out() {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.src_len = 32;
        message.header.table = 100;
        message.header.action = RuleAction::ToTable;
        message.header.flags = RuleFlags::Invert | RuleFlags::IifDetached;
        message.attributes = vec![RuleAttribute::Source([10, 0, 0, 7].into())];
        let header = [2, 0, 32, 0, 100, 0, 0, 1, 2, 0, 0, 0];
        let source = [8, 0, 2, 0, 10, 0, 0, 7];
        assert_eq!(
            rule(message).unwrap().message,
            [&header[..], &source].concat()
        );
    }
}
