//! A namespace's routes.

use std::collections::HashMap;

use netlink_packet_core::Emitable as _;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop,
    RouteNextHopFlags, RouteProtocol, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use podvisor_proto::agent::v1::{NextHop, Route};

use super::super::HostError;
use super::super::route_socket::RouteSocket;
use super::ScanError;

/// The table of addresses of this host, which every kernel makes itself (`RT_TABLE_LOCAL`).
const LOCAL_TABLE: u32 = 255;
/// What link-local addresses begin with (RFC 4291).
const LINK_LOCAL: [u8; 2] = [0xfe, 0x80];

/// The routes of a family that lead out of the interfaces in `names`, or nowhere.
pub(super) fn routes(
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

/// A route as the guest is to have it, unless its kernel makes it by itself.
fn route(message: &RouteMessage, names: &HashMap<u32, &str>) -> Result<Option<Route>, ScanError> {
    let header = &message.header;
    let mut route = Route {
        prefix_len: header.destination_prefix_length.into(),
        scope: u8::from(header.scope).into(),
        table: header.table.into(),
        ipv6: header.address_family == AddressFamily::Inet6,
        kind: u8::from(header.kind).into(),
        protocol: u8::from(header.protocol).into(),
        ..Route::default()
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(ip) => route.destination = octets(ip),
            RouteAttribute::PrefSource(ip) => route.source = octets(ip),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Metrics(metrics) => {
                route.metrics = vec![0; metrics.as_slice().buffer_len()];
                metrics.as_slice().emit(&mut route.metrics);
            }
            _ => {}
        }
    }
    if !is_carried(header, &route) {
        return Ok(None);
    }
    refuse_what_is_not_carried(message)?;
    route.next_hops = next_hops(message, names);
    // One that leads elsewhere is of no use in the guest; loopback's are its kernel's.
    let leads_out = header.kind != RouteType::Unicast || !route.next_hops.is_empty();
    Ok(leads_out.then_some(route))
}

fn is_carried(header: &RouteHeader, route: &Route) -> bool {
    let kinds = [
        RouteType::Unicast,
        RouteType::BlackHole,
        RouteType::Unreachable,
        RouteType::Prohibit,
    ];
    // The guest's kernel gives its interfaces such an address, and a route with it.
    let link_local =
        header.protocol == RouteProtocol::Kernel && route.destination.starts_with(&LINK_LOCAL);
    kinds.contains(&header.kind)
        && route.table != LOCAL_TABLE
        && !link_local
        // Entries of a cache are no configuration.
        && !header.flags.contains(RouteFlags::Cloned)
}

fn refuse_what_is_not_carried(message: &RouteMessage) -> Result<(), ScanError> {
    if message.header.source_prefix_length != 0 {
        return Err(ScanError::Route("a source prefix"));
    }
    if message.header.tos != 0 {
        return Err(ScanError::Route("a type of service"));
    }
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Encap(_) => return Err(ScanError::Route("an encapsulation")),
            RouteAttribute::Realm(_) => return Err(ScanError::Route("a realm")),
            _ => {}
        }
    }
    Ok(())
}

/// Where a route leads, as far as the guest can go there too.
fn next_hops(message: &RouteMessage, names: &HashMap<u32, &str>) -> Vec<NextHop> {
    let mut single = RouteNextHop::default();
    if message.header.flags.contains(RouteFlags::Onlink) {
        single.flags = RouteNextHopFlags::Onlink;
    }
    single.attributes.clone_from(&message.attributes);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => single.interface_index = *index,
            RouteAttribute::MultiPath(several) => {
                return several
                    .iter()
                    .filter_map(|hop| next_hop(hop, names))
                    .collect();
            }
            _ => {}
        }
    }
    next_hop(&single, names).into_iter().collect()
}

fn next_hop(hop: &RouteNextHop, names: &HashMap<u32, &str>) -> Option<NextHop> {
    let gateway = hop.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(ip) => Some(octets(ip)),
        RouteAttribute::Via(RouteVia::Inet(ip)) => Some(ip.octets().to_vec()),
        RouteAttribute::Via(RouteVia::Inet6(ip)) => Some(ip.octets().to_vec()),
        _ => None,
    });
    Some(NextHop {
        gateway: gateway.unwrap_or_default(),
        interface: (*names.get(&hop.interface_index)?).to_owned(),
        onlink: hop.flags.contains(RouteNextHopFlags::Onlink),
        weight: u32::from(hop.hops) + 1,
    })
}

fn octets(address: &RouteAddress) -> Vec<u8> {
    match address {
        RouteAddress::Inet(ip) => ip.octets().to_vec(),
        RouteAddress::Inet6(ip) => ip.octets().to_vec(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use netlink_packet_route::route::RouteMetric;

    use super::*;

    fn names() -> HashMap<u32, &'static str> {
        HashMap::from([(2, "eth0"), (3, "net1")])
    }

    fn gateway(last: u8) -> RouteAttribute {
        RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(10, 88, 0, last)))
    }

    fn unicast(table: u8, protocol: RouteProtocol) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.kind = RouteType::Unicast;
        message.header.protocol = protocol;
        message.header.table = table;
        message.attributes = vec![gateway(1), RouteAttribute::Oif(2)];
        message
    }

    fn carried(message: &RouteMessage) -> Option<Route> {
        route(message, &names()).unwrap()
    }

    #[test]
    fn routes_of_every_table_but_the_kernels_own_are_carried() {
        let route = carried(&unicast(254, RouteProtocol::Boot)).unwrap();
        let hop = NextHop {
            gateway: vec![10, 88, 0, 1],
            interface: "eth0".to_owned(),
            onlink: false,
            weight: 1,
        };
        assert_eq!(route.next_hops, [hop]);
        assert!(carried(&unicast(100, RouteProtocol::Static)).is_some());
        assert!(carried(&unicast(254, RouteProtocol::Kernel)).is_some());
        assert_eq!(carried(&unicast(255, RouteProtocol::Boot)), None);
    }

    #[test]
    fn a_route_of_another_interface_is_not_carried() {
        let mut message = unicast(254, RouteProtocol::Boot);
        message.attributes = vec![gateway(1), RouteAttribute::Oif(1)];
        assert_eq!(carried(&message), None);
        message.header.kind = RouteType::BlackHole;
        assert_eq!(carried(&message).unwrap().next_hops, []);
    }

    #[test]
    fn several_next_hops_keep_their_weights() {
        let mut message = unicast(254, RouteProtocol::Boot);
        let hop = |index, gateway, hops| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop.hops = hops;
            hop.attributes = vec![gateway];
            hop
        };
        let hops = vec![hop(2, gateway(1), 0), hop(3, gateway(9), 4)];
        message.attributes = vec![RouteAttribute::MultiPath(hops)];
        let route = carried(&message).unwrap();
        let hops: Vec<_> = route
            .next_hops
            .iter()
            .map(|hop| (hop.interface.as_str(), hop.gateway[3], hop.weight))
            .collect();
        assert_eq!(hops, [("eth0", 1, 1), ("net1", 9, 5)]);
    }

    #[test]
    fn metrics_go_over_as_they_are() {
        let mut message = unicast(254, RouteProtocol::Boot);
        let metrics = vec![RouteMetric::Mtu(1280), RouteMetric::InitCwnd(20)];
        message.attributes.push(RouteAttribute::Metrics(metrics));
        let expected = [[8, 0, 2, 0], [0, 5, 0, 0], [8, 0, 11, 0], [20, 0, 0, 0]].concat();
        assert_eq!(carried(&message).unwrap().metrics, expected);
    }

    #[test]
    fn what_would_get_lost_is_refused() {
        let mut message = unicast(254, RouteProtocol::Boot);
        message.header.tos = 8;
        assert!(matches!(
            route(&message, &names()),
            Err(ScanError::Route(_))
        ));
    }
}
