//! Ethernet frames: a guest's questions out of them, answers into them.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::err::packet::BuildWriteError;
use etherparse::{
    IpNumber, LinkSlice, NetSlice, PacketBuilder, PacketBuilderStep, SlicedPacket, TransportSlice,
    UdpHeader,
};

use super::SERVER_MAC;

/// All nodes of a link (RFC 4291) in Ethernet's way (RFC 2464).
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
pub const BROADCAST_MAC: [u8; 6] = [0xff; 6];

const DHCP4_SERVER: u16 = 67;
const DHCP4_CLIENT: u16 = 68;
const DHCP6_SERVER: u16 = 547;
const DHCP6_CLIENT: u16 = 546;
const TTL: u8 = 64;
/// Neighbour discovery does not go through routers, which is told by a number that no router leaves
/// as it is (RFC 4861, 11.2).
const ON_LINK: u8 = 255;
const ROUTER_SOLICITATION: u8 = 133;
pub const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// What a guest asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question<'a> {
    /// A message for a DHCP server.
    Dhcp4(&'a [u8]),
    /// A message for a DHCPv6 server.
    Dhcp6 {
        /// The asking address.
        from: Ipv6Addr,
        /// The message.
        message: &'a [u8],
    },
    /// Which routers are there?
    Routers,
    /// Who has this address?
    Neighbour {
        /// The asking address; unspecified while a guest asks whether the address is free.
        from: Ipv6Addr,
        /// The address.
        target: Ipv6Addr,
    },
}

/// The question in a frame of the guest with this hardware address. Checksums are not looked at:
/// a guest leaves them to its card.
pub fn question(frame: &[u8], guest: [u8; 6]) -> Option<Question<'_>> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(LinkSlice::Ethernet2(link)) = &packet.link else {
        return None;
    };
    if link.source() != guest || !packet.link_exts.is_empty() {
        return None;
    }
    match (&packet.net, &packet.transport) {
        (Some(NetSlice::Ipv4(_)), Some(TransportSlice::Udp(udp))) => {
            (udp.destination_port() == DHCP4_SERVER).then(|| Question::Dhcp4(udp.payload()))
        }
        (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Udp(udp))) => {
            let from = ip.header().source_addr();
            let message = udp.payload();
            let for_us = udp.destination_port() == DHCP6_SERVER && from.is_unicast_link_local();
            for_us.then_some(Question::Dhcp6 { from, message })
        }
        (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) => {
            if ip.header().hop_limit() != ON_LINK || icmp.code_u8() != 0 {
                return None;
            }
            match icmp.type_u8() {
                ROUTER_SOLICITATION => Some(Question::Routers),
                NEIGHBOUR_SOLICITATION => Some(Question::Neighbour {
                    from: ip.header().source_addr(),
                    // The four bytes before it are reserved.
                    target: icmp.slice().get(8..24).and_then(address)?,
                }),
                _ => None,
            }
        }
        _ => None,
    }
}

fn address(bytes: &[u8]) -> Option<Ipv6Addr> {
    <[u8; 16]>::try_from(bytes).ok().map(Ipv6Addr::from)
}

/// A DHCP server's message.
pub fn dhcp4(
    (to, mac): (Ipv4Addr, [u8; 6]),
    from: Ipv4Addr,
    message: &[u8],
) -> Result<Vec<u8>, BuildWriteError> {
    let packet = PacketBuilder::ethernet2(SERVER_MAC, mac)
        .ipv4(from.octets(), to.octets(), TTL)
        .udp(DHCP4_SERVER, DHCP4_CLIENT);
    udp(packet, message)
}

/// A DHCPv6 server's message.
pub fn dhcp6(
    (to, mac): (Ipv6Addr, [u8; 6]),
    from: Ipv6Addr,
    message: &[u8],
) -> Result<Vec<u8>, BuildWriteError> {
    let packet = PacketBuilder::ethernet2(SERVER_MAC, mac)
        .ipv6(from.octets(), to.octets(), TTL)
        .udp(DHCP6_SERVER, DHCP6_CLIENT);
    udp(packet, message)
}

fn udp(packet: PacketBuilderStep<UdpHeader>, message: &[u8]) -> Result<Vec<u8>, BuildWriteError> {
    let mut frame = Vec::with_capacity(packet.size(message.len()));
    packet.write(&mut frame, message)?;
    Ok(frame)
}

/// A message of neighbour discovery: its type, the four bytes behind the checksum, and the rest. To
/// all nodes when there is no guest to send it to.
pub fn discovery(
    from: Ipv6Addr,
    to: Option<(Ipv6Addr, [u8; 6])>,
    (kind, head): (u8, [u8; 4]),
    body: &[u8],
) -> Result<Vec<u8>, BuildWriteError> {
    let (to, mac) = to.unwrap_or((ALL_NODES, ALL_NODES_MAC));
    let packet = PacketBuilder::ethernet2(SERVER_MAC, mac)
        .ipv6(from.octets(), to.octets(), ON_LINK)
        .icmpv6_raw(kind, 0, head);
    let mut frame = Vec::with_capacity(packet.size(body.len()));
    packet.write(&mut frame, body)?;
    Ok(frame)
}

const _: () = assert!(IpNumber::UDP.0 == 17 && IpNumber::IPV6_ICMP.0 == 58);

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    pub const GUEST: [u8; 6] = [0x02, 0, 0, 0, 0, 9];

    /// A guest's DHCP message in its frame.
    pub fn asked4(message: &[u8]) -> Vec<u8> {
        let packet = PacketBuilder::ethernet2(GUEST, BROADCAST_MAC)
            .ipv4([0; 4], [255; 4], 64)
            .udp(DHCP4_CLIENT, DHCP4_SERVER);
        udp(packet, message).unwrap()
    }

    /// A guest's DHCPv6 message in its frame.
    pub fn asked6(from: Ipv6Addr, message: &[u8]) -> Vec<u8> {
        let servers: Ipv6Addr = "ff02::1:2".parse().unwrap();
        let packet = PacketBuilder::ethernet2(GUEST, [0x33, 0x33, 0, 1, 0, 2])
            .ipv6(from.octets(), servers.octets(), 1)
            .udp(DHCP6_CLIENT, DHCP6_SERVER);
        udp(packet, message).unwrap()
    }

    /// A guest's message of neighbour discovery in its frame.
    pub fn solicited(from: Ipv6Addr, kind: u8, body: &[u8], hops: u8) -> Vec<u8> {
        let packet = PacketBuilder::ethernet2(GUEST, ALL_NODES_MAC)
            .ipv6(from.octets(), ALL_NODES.octets(), hops)
            .icmpv6_raw(kind, 0, [0; 4]);
        let mut frame = Vec::new();
        packet.write(&mut frame, body).unwrap();
        frame
    }

    #[test]
    fn questions_are_told_from_all_else() {
        let from: Ipv6Addr = "fe80::9".parse().unwrap();
        let target: Ipv6Addr = "fe80::70:6f64:0:1".parse().unwrap();
        let frame = asked4(b"x");
        assert_eq!(question(&frame, GUEST), Some(Question::Dhcp4(b"x")));
        assert_eq!(question(&frame, [3; 6]), None, "of somebody else");
        let frame = asked6(from, b"y");
        let expected = Question::Dhcp6 {
            from,
            message: b"y",
        };
        assert_eq!(question(&frame, GUEST), Some(expected));
        let frame = solicited(from, ROUTER_SOLICITATION, &[], ON_LINK);
        assert_eq!(question(&frame, GUEST), Some(Question::Routers));
        let frame = solicited(from, NEIGHBOUR_SOLICITATION, &target.octets(), ON_LINK);
        let expected = Question::Neighbour { from, target };
        assert_eq!(question(&frame, GUEST), Some(expected));
        for other in [
            solicited(from, NEIGHBOUR_SOLICITATION, &target.octets(), 64),
            solicited(from, NEIGHBOUR_SOLICITATION, &[1; 4], ON_LINK),
            solicited(from, 128, &[], ON_LINK),
            Vec::new(),
        ] {
            assert_eq!(question(&other, GUEST), None);
        }
    }

    proptest! {
        #[test]
        fn nothing_in_a_frame_is_more_than_a_question(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            cut in 0_usize..100,
            flip in (0_usize..100, any::<u8>()),
        ) {
            let _ = question(&bytes, GUEST);
            let mut frame = asked4(&bytes);
            if let Some(byte) = frame.get_mut(flip.0) {
                *byte ^= flip.1;
            }
            let _ = question(&frame, GUEST);
            frame.truncate(cut);
            let _ = question(&frame, GUEST);
        }
    }
}
