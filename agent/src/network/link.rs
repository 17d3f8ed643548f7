//! Interfaces: found by MAC address, named, sized, brought up.

use std::fs;

use podvisor_proto::agent::v1::Interface;

use super::NetworkError;
use super::message::Message;
use super::socket::RouteSocket;

/// RTM_NEWLINK (linux/rtnetlink.h).
const NEW_LINK: u16 = 16;
/// IFLA_IFNAME and IFLA_MTU (linux/if_link.h).
const NAME: u16 = 3;
const MTU: u16 = 4;
/// IFF_UP (linux/if.h).
const UP: u32 = 1;
/// The loopback interface is the first of every network namespace.
const LOOPBACK_INDEX: i32 = 1;
/// Longest interface name (IFNAMSIZ less the NUL).
const MAX_NAME: usize = 15;
/// Where the kernel lists interfaces.
const CLASS: &str = "/sys/class/net";

/// Brings up the loopback interface of the caller's network namespace.
///
/// # Errors
///
/// [`NetworkError`].
pub fn bring_loopback_up() -> Result<(), NetworkError> {
    let mut socket = RouteSocket::open().map_err(NetworkError::Socket)?;
    socket.configure(change(LOOPBACK_INDEX, UP, UP), || "interface lo".to_owned())
}

/// Names, sizes and brings up every interface.
///
/// # Errors
///
/// [`NetworkError`] naming the interface.
pub fn configure(socket: &mut RouteSocket, interfaces: &[Interface]) -> Result<(), NetworkError> {
    let mut found = Vec::with_capacity(interfaces.len());
    for interface in interfaces {
        check(interface)?;
        found.push((interface, find(interface)?));
    }
    // Two interfaces may have to swap names: those that change get out of the way first.
    let renamed: Vec<_> = found
        .iter()
        .filter(|(interface, link)| interface.name != link.name)
        .collect();
    for (interface, link) in &renamed {
        rename(socket, interface, link.index, &format!("pv{}", link.index))?;
    }
    for (interface, link) in &renamed {
        rename(socket, interface, link.index, &interface.name)?;
    }
    for (interface, link) in &found {
        let mut message = change(link.index, UP, UP);
        if interface.mtu != 0 {
            message = message.number(MTU, interface.mtu);
        }
        socket.configure(message, || describe(interface))?;
    }
    Ok(())
}

/// The index of an interface by its name.
///
/// # Errors
///
/// [`NetworkError::NoInterface`].
pub fn index_of(name: &str) -> Result<i32, NetworkError> {
    let missing = || NetworkError::NoInterface(name.to_owned());
    if !is_name(name) {
        return Err(missing());
    }
    read_index(name).ok_or_else(missing)
}

struct Link {
    name: String,
    index: i32,
}

fn find(interface: &Interface) -> Result<Link, NetworkError> {
    let wanted = mac_text(&interface.mac);
    for entry in fs::read_dir(CLASS).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let mac = fs::read_to_string(entry.path().join("address")).unwrap_or_default();
        if mac.trim() == wanted
            && let Some(index) = read_index(&name)
        {
            return Ok(Link { name, index });
        }
    }
    Err(NetworkError::NoInterface(format!(
        "{} with address {wanted}",
        interface.name
    )))
}

fn read_index(name: &str) -> Option<i32> {
    fs::read_to_string(format!("{CLASS}/{name}/ifindex"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

fn check(interface: &Interface) -> Result<(), NetworkError> {
    let malformed = |reason| {
        Err(NetworkError::Malformed {
            object: describe(interface),
            reason,
        })
    };
    if interface.mac.len() != 6 {
        return malformed("the MAC address does not have six bytes");
    }
    if !is_name(&interface.name) {
        return malformed("not the name of an interface");
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
    !name.is_empty()
        && name.len() <= MAX_NAME
        && name.bytes().all(allowed)
        && name != "."
        && name != ".."
}

fn rename(
    socket: &mut RouteSocket,
    interface: &Interface,
    index: i32,
    name: &str,
) -> Result<(), NetworkError> {
    let message = change(index, 0, UP).name(NAME, name);
    socket.configure(message, || {
        format!("{} (rename to {name})", describe(interface))
    })
}

/// A change of flags: `struct ifinfomsg` with the interface's index.
fn change(index: i32, flags: u32, mask: u32) -> Message {
    let mut fixed = vec![0_u8; 4];
    fixed.extend(index.to_ne_bytes());
    fixed.extend(flags.to_ne_bytes());
    fixed.extend(mask.to_ne_bytes());
    Message::new(NEW_LINK, 0, &fixed)
}

fn describe(interface: &Interface) -> String {
    format!("interface {}", interface.name)
}

fn mac_text(mac: &[u8]) -> String {
    let octets: Vec<String> = mac.iter().map(|octet| format!("{octet:02x}")).collect();
    octets.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_written_as_the_kernel_writes_it() {
        assert_eq!(mac_text(&[0x02, 0, 0xab, 0xff, 1, 16]), "02:00:ab:ff:01:10");
    }

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        for name in ["", "..", "a/b", "waytoolongforaname", "a b"] {
            assert!(!is_name(name), "{name}");
        }
        assert!(is_name("eth0") && is_name("net1.100"));
    }

    #[test]
    fn loopback_is_found_by_name() {
        assert_eq!(index_of("lo").unwrap(), LOOPBACK_INDEX);
        assert!(matches!(
            index_of("nothere"),
            Err(NetworkError::NoInterface(_))
        ));
    }
}
