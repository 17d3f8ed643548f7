//! What can be asked of a pod.

use std::fmt;
use std::path::PathBuf;

use oci_spec::runtime::Spec;
use tokio::sync::oneshot;

use super::create::ExecPlan;
use super::error::TaskError;
use super::process::{Exit, ProcessState};
use crate::host::HostMount;
use crate::io::Stdio;
use crate::pod::files::PodFiles;

/// Takes the answer to a request.
pub type Reply<T> = oneshot::Sender<Result<T, TaskError>>;

/// Names a process: a container's init, or one of its execs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// The container, or the sandbox itself.
    pub container: String,
    /// The exec; empty for the init.
    pub exec: String,
}

impl ProcessId {
    /// A container's init.
    pub fn init(container: &str) -> Self {
        Self {
            container: container.to_owned(),
            exec: String::new(),
        }
    }

    /// Whether this is a container's init.
    pub fn is_init(&self) -> bool {
        self.exec.is_empty()
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_init() {
            write!(f, "container {}", self.container)
        } else {
            write!(f, "exec {} of container {}", self.exec, self.container)
        }
    }
}

/// A task to create.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// Its identifier.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its root file system; empty when the bundle has it already.
    pub rootfs: Vec<HostMount>,
    /// Its init's streams.
    pub stdio: Stdio,
    /// The configuration that containerd's runtime options name.
    pub config_path: Option<PathBuf>,
    /// What a pod's bundle has not got, where containerd leaves it to the shim.
    pub pod: Option<PodRequest>,
}

/// A pod whose bundle holds nothing (containerd's sandboxer "shim").
#[derive(Clone, Debug)]
pub struct PodRequest {
    /// Its spec.
    pub spec: Spec,
    /// The files that its containers share.
    pub files: PodFiles,
}

/// What is known of a process.
#[derive(Clone, Debug)]
pub struct ProcessStatus {
    /// Its container's number among the host's processes.
    pub pid: u32,
    /// Its container's bundle.
    pub bundle: PathBuf,
    /// Its state.
    pub state: ProcessState,
    /// Whether its container is paused.
    pub paused: bool,
    /// Its streams.
    pub stdio: Stdio,
}

/// A process that was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// How it had ended.
    pub exit: Exit,
}

/// A request.
pub enum Request {
    /// Creates a task: boots the pod's guest, or makes a container in it.
    Create(Box<CreateRequest>, Reply<()>),
    /// Starts a process.
    Start(ProcessId, Reply<()>),
    /// Makes another process of a container.
    Exec(Box<ExecPlan>, Reply<()>),
    /// Sends a signal, to all processes of the container with `all`.
    Signal {
        /// To whom.
        process: ProcessId,
        /// Linux's number of it.
        signal: u32,
        /// Whether all of the container's processes get it.
        all: bool,
        /// Takes the answer.
        reply: Reply<()>,
    },
    /// Waits for a process's end.
    Wait(ProcessId, Reply<Exit>),
    /// Tells a process's state.
    Status(ProcessId, Reply<ProcessStatus>),
    /// Lists a container's processes, by their numbers in the guest; empty for the sandbox.
    Processes(String, Reply<Vec<u32>>),
    /// Deletes a process that ended or never started.
    Delete(ProcessId, Reply<Deleted>),
    /// Sets the size of a process's terminal.
    Resize {
        /// Whose.
        process: ProcessId,
        /// Its height in characters.
        rows: u32,
        /// Its width in characters.
        columns: u32,
        /// Takes the answer.
        reply: Reply<()>,
    },
    /// Lets a process's stdin end.
    CloseInput(ProcessId, Reply<()>),
    /// Changes a container's limits; OCI resources (JSON).
    Update(String, Vec<u8>, Reply<()>),
    /// Stops a container's processes, or lets them go on.
    Freeze {
        /// The container.
        container: String,
        /// Whether to stop them.
        frozen: bool,
        /// Takes the answer.
        reply: Reply<()>,
    },
    /// Tells a container's metrics, or the whole guest's: `io.containerd.cgroups.v2.Metrics`.
    Stats(String, Reply<Vec<u8>>),
    /// Ends the pod's guest; answers when there is none and the pod's network is let go.
    Stop(Reply<()>),
    /// Ends the pod's server, unless there are tasks; answers whether it ends.
    Shutdown(Reply<bool>),
}
