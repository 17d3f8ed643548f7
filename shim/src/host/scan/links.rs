//! A namespace's interfaces with their addresses.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use podvisor_proto::agent::v1::{Address, Interface};

use super::super::HostError;
use super::super::local::is_tap;
use super::super::route_socket::RouteSocket;
use super::{ScanError, octets};

/// An interface of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Link {
    pub(in super::super) index: u32,
    pub(in super::super) name: String,
    pub(in super::super) mac: [u8; 6],
    pub(in super::super) mtu: u32,
}

/// The interfaces that a guest is to have: all that are up, but for loopback and our own taps.
pub(in super::super) fn links(socket: &mut RouteSocket) -> Result<Vec<Link>, HostError> {
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
    // The guest tells its cards by their addresses.
    let mut macs: Vec<_> = links.iter().map(|link| link.mac).collect();
    macs.sort_unstable();
    if macs
        .windows(2)
        .any(|pair| matches!(pair, [one, other] if one == other))
    {
        return Err(ScanError::SameAddress.into());
    }
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

/// What the guest is told of `links`, with all addresses on them.
pub(super) fn interfaces(
    socket: &mut RouteSocket,
    links: &[Link],
) -> Result<Vec<Interface>, HostError> {
    let mut interfaces: Vec<_> = links.iter().map(interface).collect();
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    for answer in socket.dump("listing addresses", request)? {
        if let RouteNetlinkMessage::NewAddress(message) = answer {
            let link = links
                .iter()
                .position(|link| link.index == message.header.index);
            if let Some(interface) = link.and_then(|position| interfaces.get_mut(position)) {
                add_address(interface, &message);
            }
        }
    }
    Ok(interfaces)
}

fn interface(link: &Link) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac.to_vec(),
        mtu: link.mtu,
        addresses: Vec::new(),
    }
}

fn add_address(interface: &mut Interface, message: &AddressMessage) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_addresses_are_told_from_others() {
        let mac = [0x02, 0x42, 0xac, 0x11, 0x00, 0x02];
        assert!(is_made_by_kernel(
            "fe80::42:acff:fe11:2".parse().unwrap(),
            &mac
        ));
        assert!(!is_made_by_kernel("fe80::1".parse().unwrap(), &mac));
    }
}
