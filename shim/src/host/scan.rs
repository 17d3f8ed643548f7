//! Reads a network namespace: its interfaces, addresses, routes, rules and neighbours, for the
//! guest to take over. What cannot be taken over is an error, not an omission.

use std::collections::HashMap;
use std::net::IpAddr;

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use podvisor_proto::agent::v1::{Address, Interface, Neighbor, NetworkConfig, Route, Rule};
use thiserror::Error;

use super::HostError;
use super::local::is_tap;
use super::route_socket::{RouteError, RouteSocket};

/// The table of addresses of this host, which every kernel makes itself (`RT_TABLE_LOCAL`).
const LOCAL_TABLE: u32 = 255;
/// Priorities of the three rules that every kernel makes itself (`fib_default_rules_init`).
const KERNEL_RULES: [(u32, u32); 3] = [(0, 255), (32766, 254), (32767, 253)];

/// What a guest cannot be given.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ScanError {
    /// An interface that is no Ethernet.
    #[error("interface {0} is no Ethernet interface")]
    NotEthernet(String),
    /// A route with something that is not carried over.
    #[error("a route has {0}")]
    Route(&'static str),
    /// A policy rule with something that is not carried over.
    #[error("a policy rule has {0}")]
    Rule(&'static str),
}

/// An interface of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u32,
}

/// The interfaces that a guest is to have: all that are up, but for loopback and our own taps.
pub(super) fn links(socket: &mut RouteSocket) -> Result<Vec<Link>, HostError> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let mut links = Vec::new();
    for answer in socket.dump("listing links", request)? {
        if let RouteNetlinkMessage::NewLink(message) = answer
            && let Some(link) = link(&message)?
        {
            links.push(link);
        }
    }
    links.sort_by_key(|link| link.index);
    Ok(links)
}

fn link(message: &LinkMessage) -> Result<Option<Link>, ScanError> {
    let flags = message.header.flags;
    let mut found = Link {
        index: message.header.index,
        name: String::new(),
        mac: [0; 6],
        mtu: 1500,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::Address(mac) => {
                found.mac = mac.as_slice().try_into().unwrap_or_default()
            }
            _ => {}
        }
    }
    if flags.contains(LinkFlags::Loopback) || !flags.contains(LinkFlags::Up) || is_tap(&found.name)
    {
        return Ok(None);
    }
    if message.header.link_layer_type != LinkLayerType::Ether {
        return Err(ScanError::NotEthernet(found.name));
    }
    Ok(Some(found))
}

/// Everything that is configured on `links`.
pub(super) fn network(
    socket: &mut RouteSocket,
    links: &[Link],
) -> Result<NetworkConfig, HostError> {
    let names: HashMap<u32, &str> = links
        .iter()
        .map(|link| (link.index, link.name.as_str()))
        .collect();
    let mut config = NetworkConfig {
        interfaces: links.iter().map(interface).collect(),
        ..NetworkConfig::default()
    };
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    for answer in socket.dump("listing addresses", request)? {
        if let RouteNetlinkMessage::NewAddress(message) = answer {
            add_address(&mut config, links, &message);
        }
    }
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        config.routes.extend(routes(socket, family, &names)?);
        config.rules.extend(rules(socket, family)?);
    }
    config.neighbors = neighbours(socket, &names)?;
    Ok(config)
}

fn interface(link: &Link) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac.to_vec(),
        mtu: link.mtu,
        addresses: Vec::new(),
    }
}

fn add_address(config: &mut NetworkConfig, links: &[Link], message: &AddressMessage) {
    let position = links
        .iter()
        .position(|link| link.index == message.header.index);
    let Some(interface) = position.and_then(|position| config.interfaces.get_mut(position)) else {
        return;
    };
    // On a point-to-point link `Address` is the other end's.
    let local = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
    let address = local.or_else(|| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            })
    });
    if let Some(ip) = address.filter(|ip| !is_made_by_kernel(*ip, &interface.mac)) {
        let prefix_len = message.header.prefix_len.into();
        interface.addresses.push(Address {
            ip: octets(ip),
            prefix_len,
        });
    }
}

/// Whether the guest's kernel gives itself this address: the link-local one of its MAC (RFC 4291).
fn is_made_by_kernel(ip: IpAddr, mac: &[u8]) -> bool {
    let (IpAddr::V6(ip), [a, b, c, d, e, f]) = (ip, mac) else {
        return false;
    };
    ip.octets()
        == [
            0xfe,
            0x80,
            0,
            0,
            0,
            0,
            0,
            0,
            a ^ 2,
            *b,
            *c,
            0xff,
            0xfe,
            *d,
            *e,
            *f,
        ]
}

fn routes(
    socket: &mut RouteSocket,
    family: AddressFamily,
    names: &HashMap<u32, &str>,
) -> Result<Vec<Route>, HostError> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    let mut routes = Vec::new();
    for answer in socket.dump("listing routes", RouteNetlinkMessage::GetRoute(request))? {
        if let RouteNetlinkMessage::NewRoute(message) = answer
            && let Some(route) = route(&message, names)?
        {
            routes.push(route);
        }
    }
    Ok(routes)
}

/// A route that an administrator or a CNI plugin has made; connected ones come with addresses.
fn route(message: &RouteMessage, names: &HashMap<u32, &str>) -> Result<Option<Route>, ScanError> {
    let header = &message.header;
    let mut route = Route {
        prefix_len: header.destination_prefix_length.into(),
        scope: u8::from(header.scope).into(),
        table: header.table.into(),
        onlink: header.flags.contains(RouteFlags::Onlink),
        ipv6: header.address_family == AddressFamily::Inet6,
        kind: u8::from(header.kind).into(),
        ..Route::default()
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(ip) => route.destination = route_octets(ip),
            RouteAttribute::Gateway(ip) => route.gateway = route_octets(ip),
            RouteAttribute::PrefSource(ip) => route.source = route_octets(ip),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Oif(index) => match names.get(index) {
                Some(name) => route.interface = (*name).to_owned(),
                None => return Ok(None),
            },
            RouteAttribute::Metrics(metrics) => route.mtu = route_mtu(metrics),
            RouteAttribute::MultiPath(_) if is_carried(header, route.table) => {
                return Err(ScanError::Route("several next hops"));
            }
            _ => {}
        }
    }
    Ok(is_carried(header, route.table).then_some(route))
}

fn is_carried(header: &RouteHeader, table: u32) -> bool {
    let kinds = [
        RouteType::Unicast,
        RouteType::BlackHole,
        RouteType::Unreachable,
        RouteType::Prohibit,
    ];
    kinds.contains(&header.kind)
        && header.protocol != RouteProtocol::Kernel
        && table != LOCAL_TABLE
        // Entries of a cache are no configuration.
        && !header.flags.contains(RouteFlags::Cloned)
}

fn route_mtu(metrics: &[RouteMetric]) -> u32 {
    let mtu = metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    mtu.unwrap_or_default()
}

fn route_octets(address: &RouteAddress) -> Vec<u8> {
    match address {
        RouteAddress::Inet(ip) => ip.octets().to_vec(),
        RouteAddress::Inet6(ip) => ip.octets().to_vec(),
        _ => Vec::new(),
    }
}

fn rules(socket: &mut RouteSocket, family: AddressFamily) -> Result<Vec<Rule>, HostError> {
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
    let mut rules = Vec::new();
    for answer in answers {
        if let RouteNetlinkMessage::NewRule(message) = answer
            && let Some(rule) = rule(&message)?
        {
            rules.push(rule);
        }
    }
    Ok(rules)
}

fn rule(message: &RuleMessage) -> Result<Option<Rule>, ScanError> {
    let header = &message.header;
    let mut rule = Rule {
        ipv6: header.family == AddressFamily::Inet6,
        table: header.table.into(),
        source_prefix_len: header.src_len.into(),
        destination_prefix_len: header.dst_len.into(),
        ..Rule::default()
    };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Source(ip) => rule.source = octets(*ip),
            RuleAttribute::Destination(ip) => rule.destination = octets(*ip),
            RuleAttribute::FwMark(mark) => rule.fwmark = *mark,
            RuleAttribute::Iifname(name) => rule.iif.clone_from(name),
            RuleAttribute::Oifname(name) => rule.oif.clone_from(name),
            RuleAttribute::FwMask(mask) if !matches!(*mask, 0 | u32::MAX) => {
                return Err(ScanError::Rule("a mask for marks"));
            }
            RuleAttribute::UidRange(_) => return Err(ScanError::Rule("a range of users")),
            RuleAttribute::SourcePortRange(_) | RuleAttribute::DestinationPortRange(_) => {
                return Err(ScanError::Rule("a range of ports"));
            }
            _ => {}
        }
    }
    let plain = rule.source.is_empty() && rule.destination.is_empty() && rule.fwmark == 0;
    if plain && KERNEL_RULES.contains(&(rule.priority, rule.table)) {
        return Ok(None);
    }
    if header.action != RuleAction::ToTable {
        return Err(ScanError::Rule("another action than a table"));
    }
    Ok(Some(rule))
}

fn neighbours(
    socket: &mut RouteSocket,
    names: &HashMap<u32, &str>,
) -> Result<Vec<Neighbor>, HostError> {
    let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let mut neighbours = Vec::new();
    for answer in socket.dump("listing neighbours", request)? {
        if let RouteNetlinkMessage::NewNeighbour(message) = answer {
            neighbours.extend(neighbour(&message, names));
        }
    }
    Ok(neighbours)
}

/// A neighbour that was entered by hand.
fn neighbour(message: &NeighbourMessage, names: &HashMap<u32, &str>) -> Option<Neighbor> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mut neighbour = Neighbor {
        interface: (*names.get(&message.header.ifindex)?).to_owned(),
        ..Neighbor::default()
    };
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                neighbour.ip = ip.octets().to_vec();
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                neighbour.ip = ip.octets().to_vec();
            }
            NeighbourAttribute::LinkLayerAddress(mac) => neighbour.mac.clone_from(mac),
            _ => {}
        }
    }
    (!neighbour.ip.is_empty() && !neighbour.mac.is_empty()).then_some(neighbour)
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn unicast(table: u8, protocol: RouteProtocol) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.kind = RouteType::Unicast;
        message.header.protocol = protocol;
        message.header.table = table;
        let gateway = RouteAddress::Inet(Ipv4Addr::new(10, 88, 0, 1));
        message.attributes = vec![RouteAttribute::Gateway(gateway), RouteAttribute::Oif(2)];
        message
    }

    #[test]
    fn routes_of_every_table_but_the_kernels_own_are_carried() {
        let names = HashMap::from([(2, "eth0")]);
        let carried = route(&unicast(254, RouteProtocol::Boot), &names)
            .unwrap()
            .unwrap();
        assert_eq!(
            (carried.gateway.as_slice(), carried.interface.as_str()),
            (&[10, 88, 0, 1][..], "eth0")
        );
        assert!(
            route(&unicast(100, RouteProtocol::Static), &names)
                .unwrap()
                .is_some()
        );
        assert_eq!(route(&unicast(255, RouteProtocol::Boot), &names), Ok(None));
        assert_eq!(
            route(&unicast(254, RouteProtocol::Kernel), &names),
            Ok(None)
        );
        assert_eq!(
            route(&unicast(254, RouteProtocol::Boot), &HashMap::new()),
            Ok(None)
        );
    }

    #[test]
    fn several_next_hops_are_refused_rather_than_lost() {
        let mut message = unicast(254, RouteProtocol::Boot);
        message
            .attributes
            .push(RouteAttribute::MultiPath(Vec::new()));
        assert!(matches!(
            route(&message, &HashMap::from([(2, "eth0")])),
            Err(ScanError::Route(_))
        ));
    }

    #[test]
    fn the_kernels_own_rules_and_addresses_are_not_carried() {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.action = RuleAction::ToTable;
        message.header.table = 254;
        message.attributes = vec![RuleAttribute::Priority(32766)];
        assert_eq!(rule(&message), Ok(None));
        message.attributes = vec![RuleAttribute::Priority(100)];
        assert_eq!(rule(&message).unwrap().unwrap().table, 254);
        let mac = [0x02, 0x42, 0xac, 0x11, 0x00, 0x02];
        assert!(is_made_by_kernel(
            "fe80::42:acff:fe11:2".parse().unwrap(),
            &mac
        ));
        assert!(!is_made_by_kernel("fe80::1".parse().unwrap(), &mac));
    }
}
