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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;

    use etherparse::PacketBuilder;
    use netlink_packet_route::link::{LinkFlags, LinkMessage};
    use nix::sched::{CloneFlags, unshare};
    use podvisor_devices::net::Tap;

    use super::super::redirect;
    use super::*;

    const GATEWAY: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const GATEWAY_MAC: [u8; 6] = [2, 6, 6, 6, 6, 6];
    /// What a tap puts before each frame.
    const HEADER: [u8; 12] = [0; 12];

    /// The gateway's answer to a frame that asks for it.
    fn answer(frame: &[u8]) -> Option<Vec<u8>> {
        let is_solicitation = frame.get(20) == Some(&58) && frame.get(54) == Some(&135);
        if !is_solicitation || frame.get(62..78) != Some(&GATEWAY) {
            return None;
        }
        let asking: [u8; 16] = frame[22..38].try_into().unwrap();
        let packet = PacketBuilder::ethernet2(GATEWAY_MAC, frame[6..12].try_into().unwrap())
            .ipv6(GATEWAY, asking, 255)
            .icmpv6_raw(136, 0, [0xe0, 0, 0, 0]);
        let mut answer = HEADER.to_vec();
        let body = [&GATEWAY[..], &[2, 1], &GATEWAY_MAC].concat();
        packet.write(&mut answer, &body).unwrap();
        Some(answer)
    }

    fn resolve_on_a_tap() -> Vec<Neighbour> {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let mut socket = RouteSocket::open().unwrap();
        let tap = Tap::open("eth0").unwrap();
        // The interface's own address is of use at once.
        fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0").unwrap();
        let interface = redirect::index_of(&mut socket, "eth0").unwrap();
        let mut link = LinkMessage::default();
        link.header.index = interface;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        let link = RouteNetlinkMessage::SetLink(link);
        socket.change("up", link, 0).unwrap();
        let mut wire = File::from(tap.as_fd().try_clone_to_owned().unwrap());
        let gateway = std::thread::spawn(move || {
            let deadline = Instant::now() + 4 * WAIT;
            let mut frame = [0; 2048];
            while Instant::now() < deadline {
                match wire.read(&mut frame) {
                    Ok(len) => {
                        if let Some(answer) = answer(&frame[HEADER.len()..len]) {
                            wire.write_all(&answer).unwrap();
                            return;
                        }
                    }
                    Err(_) => std::thread::sleep(PAUSE),
                }
            }
        });
        let silent = "fd00::2".parse().unwrap();
        let found = resolve(&mut socket, interface, &[GATEWAY.into(), silent]).unwrap();
        gateway.join().unwrap();
        found
    }

    #[test]
    fn a_gateway_that_answers_is_known_and_another_not_waited_for() {
        let found = std::thread::spawn(resolve_on_a_tap).join().unwrap();
        let expected = Neighbour {
            ip: GATEWAY.into(),
            mac: GATEWAY_MAC,
        };
        assert_eq!(found, [expected]);
    }
}
