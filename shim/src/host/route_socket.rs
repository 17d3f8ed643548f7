//! A synchronous rtnetlink socket. It belongs to the network namespace of the thread that opens
//! it.

use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use thiserror::Error;

/// The kernel fills dumps into pieces of at most 32 KiB (`netlink_dump`).
const RECEIVE_LEN: usize = 32 << 10;

/// Why the kernel did not do as asked.
#[derive(Debug, Error)]
pub enum RouteError {
    /// The socket fails.
    #[error("rtnetlink socket")]
    Socket(#[source] Errno),
    /// The kernel refused.
    #[error("{action} failed")]
    Refused {
        /// What was asked.
        action: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
    /// The kernel's answer is not understood.
    #[error("an answer of rtnetlink is not understood")]
    Decode(#[source] DecodeError),
    /// The kernel does not forward.
    #[error("cannot have the pod's network namespace forward packets")]
    Forward(#[source] std::io::Error),
    /// An interface is not there.
    #[error("there is no interface {0}")]
    NoInterface(String),
}

/// The socket.
pub(super) struct RouteSocket {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl RouteSocket {
    /// Opens a socket in the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, RouteError> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let protocol = SockProtocol::NetlinkRoute;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol);
        let socket = socket.map_err(RouteError::Socket)?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: vec![0; RECEIVE_LEN],
        })
    }

    /// Makes a change, `flags` beside request and acknowledgement; `action` names it in errors.
    pub(super) fn change(
        &mut self,
        action: &'static str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), RouteError> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.receive(action).map(|_| ())
    }

    /// Lists all objects that answer `message`.
    pub(super) fn dump(
        &mut self,
        action: &'static str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, RouteError> {
        self.send(message, NLM_F_REQUEST | NLM_F_DUMP)?;
        self.receive(action)
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), RouteError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty()).map_err(RouteError::Socket)?;
        Ok(())
    }

    /// Receives objects until the answer to the last request is complete.
    fn receive(&mut self, action: &'static str) -> Result<Vec<RouteNetlinkMessage>, RouteError> {
        let mut objects = Vec::new();
        loop {
            let len = recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty())
                .map_err(RouteError::Socket)?;
            let mut rest = self.buffer.get(..len).unwrap_or_default();
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(RouteError::Decode)?;
                // Messages are padded to four bytes.
                let taken = usize::try_from(message.header.length)
                    .unwrap_or(len)
                    .next_multiple_of(4);
                rest = rest.get(taken.max(1)..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(object) => objects.push(object),
                    NetlinkPayload::Done(_) => return Ok(objects),
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok(objects),
                        Some(code) => {
                            let source = Errno::from_raw(code.get().wrapping_neg());
                            return Err(RouteError::Refused { action, source });
                        }
                    },
                    _ => {}
                }
            }
        }
    }
}
