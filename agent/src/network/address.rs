//! Addresses and permanent neighbours.

use podvisor_proto::agent::v1::{Address, Neighbor};

use super::message::{CREATE, Message, REPLACE};
use super::socket::RouteSocket;
use super::{FAMILY_IPV6, Ip, NetworkError, family_of, link, prefix_len};

/// RTM_NEWADDR and RTM_NEWNEIGH (linux/rtnetlink.h).
const NEW_ADDRESS: u16 = 20;
const NEW_NEIGHBOR: u16 = 28;
/// IFA_* (linux/if_addr.h).
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const BROADCAST: u16 = 4;
const FLAGS: u16 = 8;
/// IFA_F_NODAD: the host has made sure that the address is unique.
const NO_DAD: u32 = 0x02;
/// IFA_F_NOPREFIXROUTE: the route to an address's network is among the host's routes, or somebody
/// has removed it there.
const NO_PREFIX_ROUTE: u32 = 0x200;
/// Scopes (linux/rtnetlink.h).
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
/// NDA_DST, NDA_LLADDR, NUD_PERMANENT (linux/neighbour.h).
const DESTINATION: u16 = 1;
const LINK_ADDRESS: u16 = 2;
const PERMANENT: u16 = 0x80;

/// Adds an address to an interface.
///
/// # Errors
///
/// [`NetworkError`] naming interface and address.
pub fn add(
    socket: &mut RouteSocket,
    interface: &str,
    index: i32,
    address: &Address,
) -> Result<(), NetworkError> {
    let object = || {
        format!(
            "address {}/{} of {interface}",
            Ip(&address.ip),
            address.prefix_len
        )
    };
    let message = message(index, address).ok_or_else(|| NetworkError::Malformed {
        object: object(),
        reason: "not an address with a prefix length",
    })?;
    socket.configure(message, object)
}

fn message(index: i32, address: &Address) -> Option<Message> {
    let family = family_of(&address.ip)?;
    let bits = prefix_len(address.prefix_len, address.ip.len())?;
    let link_local = family == FAMILY_IPV6 && address.ip.starts_with(&[0xfe, 0x80]);
    let scope = if link_local {
        SCOPE_LINK
    } else {
        SCOPE_UNIVERSE
    };
    let mut fixed = vec![family, bits, 0, scope];
    fixed.extend(index.to_ne_bytes());
    let message = Message::new(NEW_ADDRESS, CREATE | REPLACE, &fixed)
        .attribute(LOCAL, &address.ip)
        .attribute(ADDRESS, &address.ip);
    let broadcast = broadcast(&address.ip, bits);
    let duplicates = if family == FAMILY_IPV6 { NO_DAD } else { 0 };
    let message = message.number(FLAGS, duplicates | NO_PREFIX_ROUTE);
    Some(message.optional(BROADCAST, broadcast.as_ref().map_or(&[], |ip| &ip[..])))
}

/// The broadcast address of an IPv4 network that has one.
fn broadcast(ip: &[u8], bits: u8) -> Option<[u8; 4]> {
    let ip = u32::from_be_bytes(ip.try_into().ok()?);
    let host_bits = u32::MAX.checked_shr(u32::from(bits))?;
    (bits < 31).then(|| (ip | host_bits).to_be_bytes())
}

/// Adds a permanent neighbour.
///
/// # Errors
///
/// [`NetworkError`] naming interface and address.
pub fn add_neighbor(socket: &mut RouteSocket, neighbor: &Neighbor) -> Result<(), NetworkError> {
    let object = || format!("neighbour {} on {}", Ip(&neighbor.ip), neighbor.interface);
    let index = link::index_of(&neighbor.interface)?;
    let Some(family) = family_of(&neighbor.ip) else {
        return Err(NetworkError::Malformed {
            object: object(),
            reason: "not an address",
        });
    };
    let mut fixed = vec![family, 0, 0, 0];
    fixed.extend(index.to_ne_bytes());
    fixed.extend(PERMANENT.to_ne_bytes());
    fixed.extend([0, 0]);
    let message = Message::new(NEW_NEIGHBOR, CREATE | REPLACE, &fixed)
        .attribute(DESTINATION, &neighbor.ip)
        .attribute(LINK_ADDRESS, &neighbor.mac);
    socket.configure(message, object)
}

#[cfg(test)]
mod tests {
    use super::super::FAMILY_IPV4;
    use super::*;

    #[test]
    fn an_ipv4_network_has_its_broadcast_address() {
        assert_eq!(broadcast(&[10, 4, 1, 7], 16), Some([10, 4, 255, 255]));
        assert_eq!(broadcast(&[10, 4, 1, 7], 32), None);
        assert_eq!(broadcast(&[10, 4, 1, 7], 31), None);
        assert_eq!(broadcast(&[10, 4, 1, 7], 0), Some([255; 4]));
    }

    #[test]
    fn a_malformed_address_makes_no_message() {
        let address = |ip: &[u8], prefix_len| Address {
            ip: ip.to_vec(),
            prefix_len,
        };
        assert!(message(2, &address(&[10, 0, 0], 8)).is_none());
        assert!(message(2, &address(&[10, 0, 0, 1], 33)).is_none());
        assert!(message(2, &address(&[10, 0, 0, 1], 24)).is_some());
    }

    #[test]
    fn families_differ_in_what_they_carry() {
        assert_eq!(family_of(&[0; 4]), Some(FAMILY_IPV4));
        let six = Address {
            ip: [0xfd; 16].to_vec(),
            prefix_len: 64,
        };
        let bytes = message(2, &six).unwrap().finish(1);
        assert_eq!(bytes[16..20], [FAMILY_IPV6, 64, 0, SCOPE_UNIVERSE]);
        // The last attribute says that no duplicate is looked for and no route made.
        assert_eq!(bytes[bytes.len() - 8..], [8, 0, 8, 0, 2, 2, 0, 0]);
    }
}
