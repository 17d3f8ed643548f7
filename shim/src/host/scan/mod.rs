//! Reads a network namespace: its interfaces, addresses, routes, rules and neighbours, for the
//! guest to take over. What cannot be taken over is an error, not an omission.

mod links;
mod routes;
mod rules;

use std::collections::HashMap;
use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use podvisor_proto::agent::v1::{Neighbor, NetworkConfig};
use thiserror::Error;

pub(super) use self::links::{Link, links};
use super::HostError;
use super::route_socket::RouteSocket;

/// What a guest cannot be given.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ScanError {
    /// An interface that is no Ethernet.
    #[error("interface {0} is no Ethernet interface")]
    NotEthernet(String),
    /// Two interfaces that a guest could not tell from each other.
    #[error("two interfaces have the same hardware address")]
    SameAddress,
    /// A route with something that is not carried over.
    #[error("a route has {0}")]
    Route(&'static str),
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
        interfaces: links::interfaces(socket, links)?,
        ..NetworkConfig::default()
    };
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        config
            .routes
            .extend(routes::routes(socket, family, &names)?);
        config.rules.extend(rules::rules(socket, family)?);
    }
    config.neighbors = neighbours(socket, &names)?;
    Ok(config)
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
