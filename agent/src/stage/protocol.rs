//! What agent and stage tell each other over a SOCK_SEQPACKET pair: the stage
//! reports, the agent answers with one byte when the process is to run. The end
//! of the socket after that word means that execve succeeded.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::Message as _;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Greatest report; a longer message is cut to it.
const MAX_REPORT: usize = 4096;
/// Longest error message in a report.
const MAX_MESSAGE: usize = 3072;

/// What a stage needs to know.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StageConfig {
    /// config.json of the container.
    #[prost(bytes = "vec", tag = "1")]
    pub spec_json: Vec<u8>,
    /// The additional process; empty for an init.
    #[prost(bytes = "vec", tag = "2")]
    pub process_json: Vec<u8>,
    /// Whether the process gets a terminal.
    #[prost(bool, tag = "3")]
    pub terminal: bool,
    /// Its size in characters; 0 leaves it unset.
    #[prost(uint32, tag = "4")]
    pub rows: u32,
    /// As `rows`.
    #[prost(uint32, tag = "5")]
    pub columns: u32,
}

/// Kinds of failures a caller tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum FailureKind {
    /// Anything else.
    Internal = 0,
    /// The specification cannot be honoured.
    InvalidArgument = 1,
    /// The command does not exist.
    NotFound = 2,
    /// The command may not be executed.
    PermissionDenied = 3,
}

/// What a stage reports.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Report {
    /// Set once, when all but execve is done.
    #[prost(bool, tag = "1")]
    pub prepared: bool,
    /// Set when the accompanying descriptor is the terminal's master.
    #[prost(bool, tag = "2")]
    pub terminal: bool,
    /// Why there will be no process.
    #[prost(message, optional, tag = "3")]
    pub failure: Option<Failure>,
}

/// A failure of a stage.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Failure {
    /// What kind.
    #[prost(enumeration = "FailureKind", tag = "1")]
    pub kind: i32,
    /// The whole chain of causes.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// The stage's end of the socket.
pub struct Control {
    socket: OwnedFd,
}

impl Control {
    /// Wraps the inherited socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Says that only execve is left.
    ///
    /// # Errors
    ///
    /// What sendmsg(2) said.
    pub fn report_prepared(&self) -> io::Result<()> {
        self.report(
            &Report {
                prepared: true,
                ..Report::default()
            },
            None,
        )
    }

    /// Hands the terminal's master to the agent.
    ///
    /// # Errors
    ///
    /// What sendmsg(2) said.
    pub fn report_terminal(&self, master: BorrowedFd<'_>) -> io::Result<()> {
        self.report(
            &Report {
                terminal: true,
                ..Report::default()
            },
            Some(master),
        )
    }

    /// Says that there will be no process, and why.
    ///
    /// # Errors
    ///
    /// What sendmsg(2) said.
    pub fn report_failure(&self, kind: FailureKind, message: &str) -> io::Result<()> {
        let message: String = message.chars().take(MAX_MESSAGE / 4).collect();
        let failure = Failure {
            kind: kind.into(),
            message,
        };
        self.report(
            &Report {
                failure: Some(failure),
                ..Report::default()
            },
            None,
        )
    }

    /// Blocks until the agent says go.
    ///
    /// # Errors
    ///
    /// UnexpectedEof when the agent closed the socket instead.
    pub fn wait_for_go(&self) -> io::Result<()> {
        let mut byte = [0_u8; 1];
        let count = rustix::io::retry_on_intr(|| rustix::io::read(&self.socket, &mut byte))?;
        if count == 1 {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    fn report(&self, report: &Report, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let encoded = report.encode_to_vec();
        let Some(descriptor) = descriptor else {
            // A plain write, because a container's seccomp filter may be in force.
            rustix::io::write(&self.socket, &encoded)?;
            return Ok(());
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor];
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let data = [IoSlice::new(&encoded)];
        rustix::net::sendmsg(&self.socket, &data, &mut ancillary, SendFlags::empty())?;
        Ok(())
    }
}

/// Receives one report, with its descriptor, on the agent's end; `None` at the
/// end of the socket.
///
/// # Errors
///
/// WouldBlock when there is none yet; InvalidData for one that does not decode.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Report, Option<OwnedFd>)>> {
    let mut buffer = [0_u8; MAX_REPORT];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket.as_fd(),
        &mut [IoSliceMut::new(&mut buffer)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptor = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            descriptor = descriptors.next();
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    let encoded = buffer.get(..received.bytes).unwrap_or_default();
    let report = Report::decode(encoded)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Some((report, descriptor)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (Control, OwnedFd) {
        let (stage, agent) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        (Control::new(stage), agent)
    }

    #[test]
    fn a_failure_arrives_with_its_kind() {
        let (control, agent) = pair();
        control
            .report_failure(FailureKind::NotFound, "no such command")
            .unwrap();
        let (report, _) = receive(agent.as_fd()).unwrap().unwrap();
        let failure = report.failure.unwrap();
        assert_eq!(failure.kind(), FailureKind::NotFound);
        assert_eq!(failure.message, "no such command");
    }

    #[test]
    fn an_overlong_message_is_cut_to_fit() {
        let (control, agent) = pair();
        control
            .report_failure(FailureKind::Internal, &"ü".repeat(10_000))
            .unwrap();
        assert!(receive(agent.as_fd()).unwrap().unwrap().0.failure.is_some());
    }

    #[test]
    fn a_descriptor_travels_with_the_terminal_report() {
        let (control, agent) = pair();
        let (_read, write) = rustix::pipe::pipe().unwrap();
        control.report_terminal(write.as_fd()).unwrap();
        let (report, descriptor) = receive(agent.as_fd()).unwrap().unwrap();
        assert!(report.terminal && descriptor.is_some());
    }

    #[test]
    fn the_end_of_the_socket_is_no_report() {
        let (control, agent) = pair();
        drop(control);
        assert!(receive(agent.as_fd()).unwrap().is_none());
    }

    #[test]
    fn a_closed_socket_is_not_the_word_to_go() {
        let (control, agent) = pair();
        drop(agent);
        assert!(control.wait_for_go().is_err());
    }
}
