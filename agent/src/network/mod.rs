//! The pod's network inside the guest, made equal to what the host has: links
//! found by their MAC, then addresses, routes, rules and neighbours. Everything
//! can be asked for twice.

mod address;
mod link;
mod message;
mod route;
mod socket;

use std::fmt;
use std::io;

use podvisor_proto::agent::v1::NetworkConfig;

pub use link::{bring_loopback_up, move_interfaces};

/// Why the network could not be configured.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The netlink socket could not be opened.
    #[error("open a netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel does not list its interfaces.
    #[error("list interfaces")]
    List(#[source] io::Error),
    /// The request itself is malformed.
    #[error("{object}: {reason}")]
    Malformed {
        /// Interface, route, rule or neighbour.
        object: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No interface has the MAC address, or the name.
    #[error("no interface {0} in the guest")]
    NoInterface(String),
    /// The kernel refused.
    #[error("{object}")]
    Kernel {
        /// Interface, route, rule or neighbour.
        object: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Configures everything in `config`.
///
/// # Errors
///
/// [`NetworkError`] naming the first object that failed; earlier ones stay.
pub fn configure(config: &NetworkConfig) -> Result<(), NetworkError> {
    let mut socket = socket::RouteSocket::open().map_err(NetworkError::Socket)?;
    link::configure(&mut socket, &config.interfaces)?;
    for interface in &config.interfaces {
        let index = link::index_of(&interface.name)?;
        for address in &interface.addresses {
            address::add(&mut socket, &interface.name, index, address)?;
        }
    }
    // A gateway must be reachable when its route is added.
    let (gateways, direct): (Vec<_>, Vec<_>) = config
        .routes
        .iter()
        .partition(|route| route::has_gateway(route));
    for route in direct.into_iter().chain(gateways) {
        route::add(&mut socket, route)?;
    }
    for rule in &config.rules {
        route::add_rule(&mut socket, rule)?;
    }
    for neighbor in &config.neighbors {
        address::add_neighbor(&mut socket, neighbor)?;
    }
    Ok(())
}

/// Address families (linux/socket.h).
const FAMILY_IPV4: u8 = 2;
const FAMILY_IPV6: u8 = 10;

/// The family of an address by its length.
fn family_of(ip: &[u8]) -> Option<u8> {
    match ip.len() {
        4 => Some(FAMILY_IPV4),
        16 => Some(FAMILY_IPV6),
        _ => None,
    }
}

/// An IP address for messages.
struct Ip<'a>(&'a [u8]);

impl fmt::Display for Ip<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Ok(octets) = <[u8; 4]>::try_from(self.0) {
            std::net::Ipv4Addr::from(octets).fmt(f)
        } else if let Ok(octets) = <[u8; 16]>::try_from(self.0) {
            std::net::Ipv6Addr::from(octets).fmt(f)
        } else {
            write!(f, "({} bytes)", self.0.len())
        }
    }
}

/// A prefix length as the kernel's eight bits, no longer than the address.
fn prefix_len(len: u32, address_len: usize) -> Option<u8> {
    u8::try_from(len)
        .ok()
        .filter(|bits| usize::from(*bits) <= address_len * 8)
}
