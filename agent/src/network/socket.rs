//! A synchronous rtnetlink socket. The kernel answers a configuration request
//! before the send returns, so nothing ever waits here.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::NetworkError;
use super::message::{Message, result_in};

/// Greatest datagram of a result: the header, the code and the request.
const MAX_DATAGRAM: usize = 8192;

/// A socket that sends one request at a time.
pub struct RouteSocket {
    socket: OwnedFd,
    sequence: u32,
}

impl RouteSocket {
    /// Opens a socket in the caller's network namespace.
    ///
    /// # Errors
    ///
    /// What socket(2) or bind(2) said.
    pub fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // Protocol 0 is NETLINK_ROUTE.
            None,
        )?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends a request and returns its result.
    ///
    /// # Errors
    ///
    /// The kernel's verdict.
    pub fn request(&mut self, message: Message) -> io::Result<()> {
        self.sequence += 1;
        let bytes = message.finish(self.sequence);
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.socket, &bytes, SendFlags::empty(), &kernel)?;
        let mut buffer = [0_u8; MAX_DATAGRAM];
        loop {
            let (received, _) = rustix::net::recv(&self.socket, &mut buffer, RecvFlags::empty())?;
            let datagram = buffer.get(..received).unwrap_or_default();
            match result_in(datagram, self.sequence) {
                Some(0) => return Ok(()),
                Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
                None => {}
            }
        }
    }

    /// As [`RouteSocket::request`], naming what it is about in the error.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Kernel`].
    pub fn configure(
        &mut self,
        message: Message,
        object: impl FnOnce() -> String,
    ) -> Result<(), NetworkError> {
        self.request(message)
            .map_err(|source| NetworkError::Kernel {
                object: object(),
                source,
            })
    }
}
