//! One process of a container: its phase, its handles, its streams.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use podvisor_proto::agent::v1::{Stdio, StreamTokens};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};

use super::launch::Handshake;
use crate::streams::{Local, StreamTable, Token};
use crate::sys::vsock::VsockStream;

/// The streams of this guest.
pub type Streams = StreamTable<VsockStream>;

/// How far a process has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its stage prepares.
    Creating,
    /// All but execve is done, or, for an exec, nothing but promised.
    Created,
    /// The word to go was given.
    Starting,
    /// It runs.
    Running,
    /// It has ended.
    Ended,
}

impl Phase {
    /// Whether `next` may follow.
    #[must_use]
    pub fn can_become(self, next: Self) -> bool {
        match (self, next) {
            (Self::Creating, Self::Created)
            | (Self::Created, Self::Starting)
            | (Self::Starting, Self::Running) => true,
            (Self::Ended, _) => false,
            (_, Self::Ended) => true,
            _ => false,
        }
    }
}

/// One process.
#[derive(Debug)]
pub struct Process {
    phase: Phase,
    /// Pid in the guest; 0 before there is one.
    pub pid: u32,
    /// Stable handle while there is a process.
    pub pidfd: Option<Arc<OwnedFd>>,
    /// The conversation with its stage, between creation and start.
    pub handshake: Option<Handshake>,
    /// Its streams.
    pub tokens: ProcessStreams,
    /// Master of its terminal.
    pub terminal: Option<OwnedFd>,
    /// Size asked for before there was a terminal, rows and columns.
    pub size: (u32, u32),
}

impl Process {
    /// A process in its first phase.
    #[must_use]
    pub fn new(phase: Phase, tokens: ProcessStreams) -> Self {
        Self {
            phase,
            pid: 0,
            pidfd: None,
            handshake: None,
            tokens,
            terminal: None,
            size: (0, 0),
        }
    }

    /// How far it has come.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Moves on to `next`; false, and no change, when that may not follow.
    pub fn advance(&mut self, next: Phase) -> bool {
        let allowed = self.phase.can_become(next);
        if allowed {
            self.phase = next;
        }
        allowed
    }
}

/// The tokens of a process's streams.
#[derive(Debug, Clone, Default)]
pub struct ProcessStreams {
    stdin: Option<Token>,
    stdout: Option<Token>,
    stderr: Option<Token>,
}

impl ProcessStreams {
    /// Promises the streams that `stdio` names.
    ///
    /// # Errors
    ///
    /// As [`StreamTable::issue`].
    pub fn issue(stdio: &Stdio, table: &Streams) -> io::Result<Self> {
        let issue = |wanted: bool| wanted.then(|| table.issue()).transpose();
        Ok(Self {
            stdin: issue(stdio.stdin)?,
            stdout: issue(stdio.stdout)?,
            stderr: issue(stdio.stderr && !stdio.terminal)?,
        })
    }

    /// The tokens as messages have them.
    #[must_use]
    pub fn to_message(&self) -> StreamTokens {
        let bytes = |token: Option<Token>| token.map(|token| token.to_vec()).unwrap_or_default();
        StreamTokens {
            stdin: bytes(self.stdin),
            stdout: bytes(self.stdout),
            stderr: bytes(self.stderr),
        }
    }

    /// Whether the shim has dialled every one.
    #[must_use]
    pub fn are_connected(&self, table: &Streams) -> bool {
        self.all().all(|token| table.is_connected(&token))
    }

    /// Closes every one.
    pub fn forget(&self, table: &Streams) {
        self.all().for_each(|token| table.forget(&token));
    }

    /// Closes those whose end in the guest was never made, once it will not be any more.
    pub fn forget_unsupplied(&self, table: &Streams) {
        self.all().for_each(|token| table.forget_unsupplied(&token));
    }

    /// Makes the process's descriptors 0, 1 and 2: a pipe for every stream,
    /// /dev/null where there is none, and for all of them with a terminal.
    ///
    /// # Errors
    ///
    /// What open(2) or pipe2(2) said.
    pub fn open(&self, table: &Streams, terminal: bool) -> io::Result<[OwnedFd; 3]> {
        let null = || {
            let flags = OFlags::RDWR | OFlags::CLOEXEC;
            rustix::fs::open("/dev/null", flags, Mode::empty()).map_err(io::Error::from)
        };
        let output = |token: Option<Token>| match token {
            Some(token) if !terminal => {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
                table.supply(&token, Local::Output(read));
                Ok(write)
            }
            _ => null(),
        };
        let stdin = match self.stdin {
            Some(token) if !terminal => {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
                table.supply(&token, Local::Input(write));
                read
            }
            _ => null()?,
        };
        Ok([stdin, output(self.stdout)?, output(self.stderr)?])
    }

    /// Ties the streams to a terminal.
    ///
    /// # Errors
    ///
    /// What dup(2) said.
    pub fn open_terminal(&self, table: &Streams, master: &OwnedFd) -> io::Result<()> {
        let copy = || rustix::io::fcntl_dupfd_cloexec(master.as_fd(), 0);
        if let Some(token) = self.stdin {
            table.supply(&token, Local::Input(copy()?));
        }
        if let Some(token) = self.stdout {
            table.supply(&token, Local::Output(copy()?));
        }
        Ok(())
    }

    fn all(&self) -> impl Iterator<Item = Token> {
        [self.stdin, self.stdout, self.stderr].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::Phase::{Created, Creating, Ended, Running, Starting};
    use super::*;

    const ALL: [Phase; 5] = [Creating, Created, Starting, Running, Ended];

    #[test]
    fn phases_follow_one_another_and_any_may_end() {
        let allowed: Vec<_> = ALL
            .iter()
            .flat_map(|from| ALL.iter().map(move |to| (*from, *to)))
            .filter(|(from, to)| from.can_become(*to))
            .collect();
        assert_eq!(
            allowed,
            [
                (Creating, Created),
                (Creating, Ended),
                (Created, Starting),
                (Created, Ended),
                (Starting, Running),
                (Starting, Ended),
                (Running, Ended),
            ]
        );
    }

    #[test]
    fn an_ended_process_stays_ended() {
        let mut process = Process::new(Phase::Starting, ProcessStreams::default());
        assert!(process.advance(Phase::Ended));
        assert!(!process.advance(Phase::Running));
        assert_eq!(process.phase(), Phase::Ended);
    }
}
