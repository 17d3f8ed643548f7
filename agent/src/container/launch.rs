//! Starting a stage and talking to it until its process runs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::Message as _;
use rustix::fs::{FileType, MemfdFlags, Mode, OFlags, SeekFrom};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};
use tokio::io::Interest;

use crate::stage::protocol::{self, Failure, StageConfig};
use crate::sys::clone::{Spawn, Spawned, spawn};
use crate::sys::poll::{self, PolledFd};

/// Why a stage did not become a process.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The stage could not be started or spoken to.
    #[error("{what}")]
    Start {
        /// Which step.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The stage said why.
    #[error("{}", .0.message)]
    Stage(Failure),
    /// The stage was killed before it was ready.
    #[error("the process ended before it was ready")]
    Died,
}

fn start(what: &'static str) -> impl FnOnce(io::Error) -> LaunchError {
    move |source| LaunchError::Start { what, source }
}

impl LaunchError {
    /// Whether the kernel took no process into the cgroup because groups in it have controllers
    /// (admin-guide/cgroup-v2.rst, "No Internal Process Constraint").
    pub fn is_busy(&self) -> bool {
        match self {
            Self::Start { source, .. } => source.raw_os_error() == Some(libc::EBUSY),
            Self::Stage(_) | Self::Died => false,
        }
    }
}

/// What a stage is started with.
pub struct Launch<'a> {
    /// The agent's own file.
    pub program: &'static std::ffi::CStr,
    /// Which stage.
    pub stage: &'static std::ffi::CStr,
    /// What it needs to know.
    pub config: StageConfig,
    /// Its descriptors 0, 1 and 2.
    pub stdio: [OwnedFd; 3],
    /// Directory of its cgroup; none for the agent's own.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// CLONE_NEW* flags.
    pub flags: u64,
    /// A process in whose pid namespace it is born; none for a new one (with
    /// CLONE_NEWPID) or the agent's.
    pub pid_namespace_of: Option<BorrowedFd<'a>>,
    /// Init of the container that it joins.
    pub container: Option<BorrowedFd<'a>>,
    /// A process in whose user namespace it is born.
    pub users: Option<BorrowedFd<'a>>,
    /// Whom its streams belong to in the guest, where that is not the agent's to see to later.
    pub stream_owner: Option<u32>,
}

/// A stage on its way.
pub struct Launched {
    /// Its pid in the agent's namespace.
    pub pid: Pid,
    /// Stable handle of it.
    pub pidfd: OwnedFd,
    /// The conversation with it.
    pub handshake: Handshake,
}

impl Launch<'_> {
    /// Starts the stage. It prepares by itself; see [`Handshake`].
    ///
    /// # Errors
    ///
    /// [`LaunchError::Start`].
    pub fn start(&self) -> Result<Launched, LaunchError> {
        let (theirs, ours) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(io::Error::from)
        .map_err(start("make a control socket"))?;
        let config = write_config(&self.config).map_err(start("pass the configuration"))?;
        if let Some(owner) = self.stream_owner {
            give_streams(&self.stdio, owner);
        }
        let [stdin, stdout, stderr] = &self.stdio;
        let mut descriptors = vec![
            stdin.as_fd(),
            stdout.as_fd(),
            stderr.as_fd(),
            theirs.as_fd(),
            config.as_fd(),
        ];
        descriptors.extend(self.container);
        let request = Spawn {
            program: self.program,
            stage: self.stage,
            descriptors: &descriptors,
            cgroup: self.cgroup,
            flags: self.flags,
            user_namespace_of: self.users,
        };
        let spawned = match self.pid_namespace_of {
            Some(process) => spawn_in_pid_namespace(process, &request),
            None => spawn(&request),
        };
        let Spawned { pid, pidfd } = spawned.map_err(start("start a process"))?;
        let handshake = Handshake::new(ours).map_err(start("watch the control socket"))?;
        Ok(Launched {
            pid,
            pidfd,
            handshake,
        })
    }
}

/// Lets the child be born in the pid namespace of `process`: the agent's own
/// namespace for children changes for the duration of the call.
fn spawn_in_pid_namespace(process: BorrowedFd<'_>, request: &Spawn<'_>) -> io::Result<Spawned> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let own = rustix::fs::open("/proc/self/ns/pid", flags, Mode::empty())?;
    rustix::thread::move_into_thread_name_spaces(process, ThreadNameSpaceType::PROCESS_ID)?;
    let spawned = spawn(request);
    // Returning to one's own namespace is always allowed.
    rustix::thread::move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
    spawned
}

fn write_config(config: &StageConfig) -> io::Result<OwnedFd> {
    let memfd = rustix::fs::memfd_create("stage", MemfdFlags::CLOEXEC)?;
    let encoded = config.encode_to_vec();
    let mut rest = encoded.as_slice();
    while !rest.is_empty() {
        let count = rustix::io::write(&memfd, rest)?;
        rest = rest.get(count..).unwrap_or_default();
    }
    rustix::fs::seek(&memfd, SeekFrom::Start(0))?;
    Ok(memfd)
}

/// Gives the standard streams to the process's user as the guest knows it, who may then open them
/// again by name (`/dev/stdout`): in its user namespace the stage could not.
fn give_streams(stdio: &[OwnedFd], owner: u32) {
    let owner = Some(rustix::fs::Uid::from_raw(owner));
    for stream in stdio {
        // Others are not the process's own: /dev/null is everybody's.
        let is_pipe = rustix::fs::fstat(stream)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
        if is_pipe {
            // Where it fails they work as they are.
            let _ = rustix::fs::fchown(stream, owner, None);
        }
    }
}

/// The agent's end of a stage's control socket.
#[derive(Debug)]
pub struct Handshake {
    socket: PolledFd,
}

impl Handshake {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self {
            socket: poll::register(socket, Interest::READABLE)?,
        })
    }

    /// Waits until only execve is left; returns the terminal's master, if the
    /// process has a terminal.
    ///
    /// # Errors
    ///
    /// [`LaunchError::Stage`] with what the stage said, [`LaunchError::Died`].
    pub async fn prepared(&self) -> Result<Option<OwnedFd>, LaunchError> {
        let mut terminal = None;
        loop {
            let Some((report, descriptor)) = self.receive().await? else {
                return Err(LaunchError::Died);
            };
            if let Some(failure) = report.failure {
                return Err(LaunchError::Stage(failure));
            }
            if report.terminal {
                terminal = descriptor;
            }
            if report.prepared {
                return Ok(terminal);
            }
        }
    }

    /// Lets the process run and waits until it does. A process that is killed
    /// meanwhile counts as run: its end tells the rest.
    ///
    /// # Errors
    ///
    /// As [`Handshake::prepared`].
    pub async fn go(self) -> Result<(), LaunchError> {
        // A stage that is gone is seen by the read below.
        let _ = rustix::io::write(self.socket.get_ref(), b"g");
        match self.receive().await? {
            Some((
                protocol::Report {
                    failure: Some(failure),
                    ..
                },
                _,
            )) => Err(LaunchError::Stage(failure)),
            _ => Ok(()),
        }
    }

    async fn receive(&self) -> Result<Option<(protocol::Report, Option<OwnedFd>)>, LaunchError> {
        loop {
            let ready = self.socket.readable().await;
            let mut guard = ready.map_err(start("watch the control socket"))?;
            match guard.try_io(|socket| protocol::receive(socket.get_ref().as_fd())) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Ok(None);
                }
                Ok(received) => return received.map_err(start("hear from a stage")),
                Err(_would_block) => {}
            }
        }
    }
}
