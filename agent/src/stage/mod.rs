//! Stages: what the agent re-executes itself as, single-threaded, to become a
//! container's process. A stage prepares everything, reports over its control
//! socket, waits for the word to go, drops its privileges and calls execve.
//!
//! Descriptors of a stage: 0, 1, 2 are the process's own; 3 the control socket;
//! 4 a memfd with its [`StageConfig`]; 5, for an exec, a pidfd of the container.

mod command;
mod devices;
mod exec;
mod init;
mod machine;
mod mount_options;
mod mounts;
mod pod_init;
pub mod protocol;
mod root;
mod rootfs;
mod seccomp;
mod security;
mod syscall_table;
pub mod terminal;

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use prost::Message as _;
use rustix::process::DumpableBehavior;

use protocol::{Control, FailureKind, StageConfig};

/// First argument of the stage that becomes a container's init.
pub const CONTAINER_INIT: &CStr = c"container-init";
/// First argument of the stage that becomes an additional process.
pub const CONTAINER_EXEC: &CStr = c"container-exec";
/// First argument of the stage that becomes a process of a machine.
pub const MACHINE_EXEC: &CStr = c"machine-exec";
/// First argument of the process that holds the pod's shared pid namespace.
pub const POD_INIT: &CStr = c"pod-init";

const CONTROL_FD: RawFd = 3;
const CONFIG_FD: RawFd = 4;
const CONTAINER_FD: RawFd = 5;

/// Exit status of a stage whose command does not exist, as shells have it.
const EXIT_NOT_FOUND: u8 = 127;
/// Exit status of a stage that failed otherwise.
const EXIT_CANNOT_RUN: u8 = 126;

/// Why a process could not be made.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// A step failed; `what` says which, with its object.
    #[error("{what}")]
    Step {
        /// The step and what it was done to.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The specification asks for what the guest does not do.
    #[error("{0}")]
    Unsupported(String),
    /// The specification does not parse.
    #[error("specification")]
    Spec(#[from] crate::oci::OciError),
    /// The command does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The command may not be executed.
    #[error("{0}")]
    PermissionDenied(String),
}

impl StageError {
    /// Names a failed step, for `map_err`.
    pub fn step<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::Step {
            what: what.into(),
            source: source.into(),
        }
    }

    fn kind(&self) -> FailureKind {
        match self {
            Self::Step { .. } => FailureKind::Internal,
            Self::Unsupported(_) | Self::Spec(_) => FailureKind::InvalidArgument,
            Self::NotFound(_) => FailureKind::NotFound,
            Self::PermissionDenied(_) => FailureKind::PermissionDenied,
        }
    }
}

/// Does everything up to the word to go.
type Prepare = fn(&StageConfig, &Control) -> Result<command::Command, StageError>;

/// Runs the stage that `name` stands for; `None` when it is none.
#[must_use]
pub fn run(name: &CStr) -> Option<ExitCode> {
    let prepare: Prepare = match name {
        name if name == CONTAINER_INIT => init::prepare,
        name if name == CONTAINER_EXEC => exec::prepare,
        name if name == MACHINE_EXEC => machine::prepare,
        name if name == POD_INIT => {
            forbid_inspection();
            return Some(pod_init::run());
        }
        _ => return None,
    };
    forbid_inspection();
    let control = Control::new(inherited(CONTROL_FD));
    let Err(error) = execute(prepare, &control);
    let status = if matches!(error, StageError::NotFound(_)) {
        EXIT_NOT_FOUND
    } else {
        EXIT_CANNOT_RUN
    };
    // The agent reads the end of the socket when this fails, too.
    let _ = control.report_failure(error.kind(), &crate::error_chain(&error));
    Some(ExitCode::from(status))
}

/// Until execve nobody in the container may look into this process.
fn forbid_inspection() {
    // Cannot fail: the argument is valid.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Prepares, waits for the word, executes. Comes back only with an error.
fn execute(prepare: Prepare, control: &Control) -> Result<std::convert::Infallible, StageError> {
    let config = read_config()?;
    let command = prepare(&config, control)?;
    control
        .report_prepared()
        .map_err(StageError::step("report to the agent"))?;
    control
        .wait_for_go()
        .map_err(StageError::step("wait for the agent's word"))?;
    command.execute()
}

fn read_config() -> Result<StageConfig, StageError> {
    let mut file = File::from(inherited(CONFIG_FD));
    let mut encoded = Vec::new();
    file.read_to_end(&mut encoded)
        .map_err(StageError::step("read the stage's configuration"))?;
    StageConfig::decode(encoded.as_slice())
        .map_err(io::Error::other)
        .map_err(StageError::step("decode the stage's configuration"))
}

/// Takes a descriptor that this program was started with.
fn inherited(fd: RawFd) -> OwnedFd {
    // SAFETY: the agent passes these descriptors to every stage, and each is
    // taken exactly once.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // The process itself must not get it; that fails only for a closed one.
    let _ = rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC);
    fd
}
