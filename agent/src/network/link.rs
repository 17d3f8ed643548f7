//! Interfaces: found by MAC address, named, sized, brought up.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use podvisor_proto::agent::v1::{Interface, NetworkConfig};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice};

use super::NetworkError;
use super::message::Message;
use super::socket::RouteSocket;

/// RTM_NEWLINK (linux/rtnetlink.h).
const NEW_LINK: u16 = 16;
/// IFLA_IFNAME, IFLA_MTU and IFLA_NET_NS_FD (linux/if_link.h).
const NAME: u16 = 3;
const MTU: u16 = 4;
const NAMESPACE: u16 = 28;
/// IFF_UP (linux/if.h).
const UP: u32 = 1;
/// The loopback interface is the first of every network namespace.
const LOOPBACK_INDEX: i32 = 1;
/// Longest interface name (IFNAMSIZ less the NUL).
const MAX_NAME: usize = 15;
/// Where the kernel lists the interfaces of the reader's network namespace, which /sys does not do:
/// there they are those of who mounted it.
const LIST: &str = "/proc/self/net/dev";
/// Lines of [`LIST`] above the first interface.
const LIST_HEADER_LEN: usize = 2;

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
    read_index(name).map_err(|_| missing())
}

/// Moves every interface of `config` to the network namespace that `namespace` is open on.
///
/// # Errors
///
/// [`NetworkError`] naming the interface.
pub fn move_interfaces(config: &NetworkConfig, namespace: RawFd) -> Result<(), NetworkError> {
    let mut socket = RouteSocket::open().map_err(NetworkError::Socket)?;
    for interface in &config.interfaces {
        let index = find(interface)?.index;
        let message = change(index, 0, 0).attribute(NAMESPACE, &namespace.to_ne_bytes());
        socket.configure(message, || describe(interface))?;
    }
    Ok(())
}

struct Link {
    name: String,
    index: i32,
}

fn find(interface: &Interface) -> Result<Link, NetworkError> {
    let list = fs::read_to_string(LIST).map_err(NetworkError::List)?;
    for name in names(&list) {
        let mac = read_mac(name).unwrap_or_default();
        if mac.as_slice() == interface.mac
            && let Ok(index) = read_index(name)
        {
            let name = name.to_owned();
            return Ok(Link { name, index });
        }
    }
    Err(NetworkError::NoInterface(format!(
        "{} with address {}",
        interface.name,
        mac_text(&interface.mac)
    )))
}

/// The names in a list of interfaces.
fn names(list: &str) -> impl Iterator<Item = &str> {
    let lines = list.lines().skip(LIST_HEADER_LEN);
    lines.filter_map(|line| Some(line.split_once(':')?.0.trim()))
}

fn read_index(name: &str) -> io::Result<i32> {
    let index = netdevice::name_to_index(any_socket()?, name)?;
    i32::try_from(index).map_err(io::Error::other)
}

/// An interface's hardware address (netdevice(7)).
fn read_mac(name: &str) -> io::Result<[u8; 6]> {
    // SAFETY: ifreq is plain data for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (target, byte) in request.ifr_name.iter_mut().zip(name.bytes().take(MAX_NAME)) {
        *target = libc::c_char::from_ne_bytes([byte]);
    }
    let socket = any_socket()?;
    // SAFETY: the kernel reads the name, NUL-terminated since the last byte stays zero, and
    // writes the address into the same live structure.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this is the member that the call above has filled in.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    let mut mac = [0; 6];
    for (target, byte) in mac.iter_mut().zip(address.sa_data) {
        *target = u8::from_ne_bytes(byte.to_ne_bytes());
    }
    Ok(mac)
}

/// A socket to ask the network namespace by.
fn any_socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
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
    fn interfaces_are_listed_by_name() {
        let list = "Inter-|   Receive\n face |bytes\n    lo: 1 2\n  eth0:3 4\n";
        assert_eq!(names(list).collect::<Vec<_>>(), ["lo", "eth0"]);
        assert_eq!(read_mac("lo").unwrap(), [0; 6]);
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
