//! Finds the hardware addresses of a namespace's IPv6 gateways, while its own kernel still hears
//! their answers: behind a redirect only the guest does.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::route_socket::{RouteError, RouteSocket};
use crate::addresses::Neighbour;

/// A gateway on the same host answers within a millisecond, one behind a wire within some; the kernel
/// asks once a second.
const WAIT: Duration = Duration::from_millis(1200);
const PAUSE: Duration = Duration::from_millis(2);

/// The hardware addresses of those gateways behind an interface that answer.
pub(super) fn resolve(
    socket: &mut RouteSocket,
    interface: u32,
    gateways: &[Ipv6Addr],
) -> Result<Vec<Neighbour>, RouteError> {
    for gateway in gateways {
        ask(socket, interface, *gateway)?;
    }
    let deadline = Instant::now() + WAIT;
    loop {
        let known = known(socket, interface, gateways)?;
        if known.len() == gateways.len() || Instant::now() > deadline {
            return Ok(known);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Has the kernel ask for an address as if there were something to send to it.
fn ask(socket: &mut RouteSocket, interface: u32, ip: Ipv6Addr) -> Result<(), RouteError> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.ifindex = interface;
    message.header.flags = NeighbourFlags::Use;
    message.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip))];
    let message = RouteNetlinkMessage::NewNeighbour(message);
    socket.change("asking for a gateway", message, NLM_F_CREATE)
}

fn known(
    socket: &mut RouteSocket,
    interface: u32,
    wanted: &[Ipv6Addr],
) -> Result<Vec<Neighbour>, RouteError> {
    let mut request = NeighbourMessage::default();
    request.header.family = AddressFamily::Inet6;
    let request = RouteNetlinkMessage::GetNeighbour(request);
    let answers = socket.dump("listing neighbours", request)?;
    let neighbours = answers.iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewNeighbour(message) if message.header.ifindex == interface => {
            neighbour(message)
        }
        _ => None,
    });
    Ok(neighbours
        .filter(|neighbour| wanted.contains(&neighbour.ip))
        .collect())
}

/// An entry with a hardware address: one that failed or is still asked for has none.
fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                ip = Some(*address);
            }
            NeighbourAttribute::LinkLayerAddress(address) => {
                mac = address.as_slice().try_into().ok();
            }
            _ => {}
        }
    }
    Some(Neighbour { ip: ip?, mac: mac? })
}
