//! Listeners that take every TCP connection to a pod's network namespace itself: nothing of the pod
//! listens there, for what its interfaces receive goes to the guest.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::namespace::{self, NamespaceError};
use super::sk_lookup::{self, Listeners};

/// Takes all TCP connections to any address and port of a network namespace, until it is dropped.
/// The address of an accepted socket is the one that was dialled. They do not block.
pub struct NamespaceListeners {
    /// Takes those over IPv4.
    pub ipv4: TcpListener,
    /// Takes those over IPv6; None where the namespace has none.
    pub ipv6: Option<TcpListener>,
    /// Leads them here.
    pub steering: OwnedFd,
}

/// Why connections cannot be taken.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The namespace cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// The namespace's path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// No listener.
    #[error("cannot listen on the loopback interface")]
    Listen(#[source] io::Error),
    /// The kernel takes no such program: it is older than 5.9, or without BPF.
    #[error("cannot attach a socket lookup program")]
    Steer(#[source] io::Error),
}

/// Takes the connections of the network namespace at `path`.
///
/// # Errors
/// [`ListenError`]; nothing is left then.
pub(super) fn open(path: &Path) -> Result<NamespaceListeners, ListenError> {
    // Which port they get does not matter: every port leads to them.
    let (ipv4, ipv6) = namespace::within(path, || {
        let ipv4 = listen(Ipv4Addr::LOCALHOST.into());
        (ipv4, listen(Ipv6Addr::LOCALHOST.into()))
    })?;
    let ipv4 = ipv4.map_err(ListenError::Listen)?;
    let ipv6 = ipv6
        .inspect_err(|error| tracing::debug!(%error, "no connections over IPv6"))
        .ok();
    let namespace = File::open(path).map_err(|source| ListenError::Open {
        path: path.to_owned(),
        source,
    })?;
    let listeners = Listeners {
        ipv4: ipv4.as_fd(),
        ipv6: ipv6.as_ref().map(AsFd::as_fd),
    };
    let steering = sk_lookup::steer(namespace.as_fd(), listeners).map_err(ListenError::Steer)?;
    Ok(NamespaceListeners {
        ipv4,
        ipv6,
        steering,
    })
}

fn listen(address: IpAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind((address, 0))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};

    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::link::{LinkFlags, LinkMessage};
    use nix::sched::{CloneFlags, unshare};

    use super::super::route_socket::RouteSocket;
    use super::*;

    /// The calling thread's network namespace.
    const OWN: &str = "/proc/thread-self/ns/net";

    /// Runs on a thread in a network namespace of its own, whose loopback interface is up.
    fn in_new_namespace(test: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let mut link = LinkMessage::default();
            link.header.index = 1;
            link.header.flags = LinkFlags::Up;
            link.header.change_mask = LinkFlags::Up;
            let mut socket = RouteSocket::open().unwrap();
            socket
                .change("up", RouteNetlinkMessage::SetLink(link), 0)
                .unwrap();
            test();
        });
        thread.join().unwrap();
    }

    fn accept(listener: &TcpListener) -> TcpStream {
        listener.set_nonblocking(false).unwrap();
        listener.accept().unwrap().0
    }

    #[test]
    fn every_port_of_both_families_leads_to_the_listeners() {
        in_new_namespace(|| {
            let listeners = open(Path::new(OWN)).unwrap();
            for (address, listener) in [
                ("127.0.0.1:1", &listeners.ipv4),
                ("127.0.0.1:65535", &listeners.ipv4),
                ("127.1.2.3:80", &listeners.ipv4),
                ("[::1]:80", listeners.ipv6.as_ref().unwrap()),
            ] {
                let address: SocketAddr = address.parse().unwrap();
                let mut client = TcpStream::connect(address).unwrap();
                let mut server = accept(listener);
                assert_eq!(server.local_addr().unwrap(), address);
                client.write_all(b"over").unwrap();
                drop(client);
                let mut text = String::new();
                server.read_to_string(&mut text).unwrap();
                assert_eq!(text, "over");
            }
            drop(listeners);
            TcpStream::connect("127.0.0.1:80").unwrap_err();
        });
    }
}
