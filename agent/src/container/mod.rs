//! Containers and their processes: the table of what there is, the errors of
//! what is asked of it. What is done to it lies in the modules below.

mod control;
mod create;
mod launch;
mod oom;
mod pod_pid;
mod process;
mod reap;
mod start;

use std::collections::HashMap;
use std::io;
use std::sync::Mutex;

use podvisor_proto::cgroups::Metrics;
use tokio::sync::Notify;

use crate::cgroup::{Cgroup, CgroupError};
use crate::events::EventLog;
use crate::huge_pages::{HugePageError, HugePages};
use crate::oci::OciError;
use crate::pod_users::PodUsers;

pub use launch::{Handshake, Launch, LaunchError};
use oom::OomWatch;
pub use oom::watch as watch_memory;
pub use process::{Phase, Process, ProcessStreams, Streams};

/// Longest container or exec id; containerd's are at most 76.
const MAX_ID: usize = 128;

/// Names a process: the container's id, and the exec's, which is empty for init.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProcessKey {
    /// Container.
    pub container_id: String,
    /// Exec, or empty.
    pub exec_id: String,
}

impl ProcessKey {
    /// Names a container's init.
    #[must_use]
    pub fn init(container_id: &str) -> Self {
        Self {
            container_id: container_id.to_owned(),
            exec_id: String::new(),
        }
    }
}

/// Why a call about a container failed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// No such container or exec.
    #[error("no process {0}")]
    NotFound(String),
    /// The id is taken.
    #[error("{0} exists")]
    Exists(String),
    /// The process's phase does not allow the call.
    #[error("{id}: {reason}")]
    Phase {
        /// Container or exec.
        id: String,
        /// Why not.
        reason: &'static str,
    },
    /// The request is malformed.
    #[error("{0}")]
    Malformed(&'static str),
    /// The specification cannot be honoured.
    #[error("specification")]
    Spec(#[from] OciError),
    /// Its cgroup.
    #[error("control group")]
    Cgroup(#[from] CgroupError),
    /// Its huge pages.
    #[error("huge pages")]
    HugePages(#[from] HugePageError),
    /// Its process.
    #[error("start the process")]
    Launch(#[from] LaunchError),
    /// Its streams.
    #[error("standard streams")]
    Streams(#[source] io::Error),
    /// The pid namespace that containers of the pod share.
    #[error("make the pod's shared process namespace")]
    PodPid(#[source] io::Error),
    /// A signal.
    #[error("signal {number}")]
    Signal {
        /// Which.
        number: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its terminal.
    #[error("resize the terminal")]
    Terminal(#[source] io::Error),
}

/// One container.
#[derive(Debug)]
struct Container {
    spec_json: Vec<u8>,
    cgroup: Cgroup,
    /// Given back with the container.
    _huge_pages: HugePages,
    init: Process,
    execs: HashMap<String, Exec>,
    /// Kills for want of memory that have been told.
    oom_kills: u64,
    /// Counters at init's end.
    last_metrics: Option<Metrics>,
    deleting: bool,
}

/// An additional process.
#[derive(Debug)]
struct Exec {
    process: Process,
    process_json: Vec<u8>,
    terminal: bool,
}

impl Container {
    fn process_mut(&mut self, exec_id: &str) -> Option<&mut Process> {
        if exec_id.is_empty() {
            return Some(&mut self.init);
        }
        self.execs.get_mut(exec_id).map(|exec| &mut exec.process)
    }
}

/// What the table's lock protects; held for moments only, never over an await.
#[derive(Debug, Default)]
struct Table {
    containers: HashMap<String, Container>,
    /// Which of our processes a pid is.
    pids: HashMap<u32, ProcessKey>,
    pod_pid: Option<pod_pid::PodPid>,
    /// None where the pod's users are the guest's.
    pod_users: Option<PodUsers>,
}

impl Table {
    fn container(&mut self, id: &str) -> Result<&mut Container, ContainerError> {
        self.containers
            .get_mut(id)
            .ok_or_else(|| ContainerError::NotFound(id.to_owned()))
    }

    fn process(&mut self, key: &ProcessKey) -> Result<&mut Process, ContainerError> {
        let container = self.container(&key.container_id)?;
        container
            .process_mut(&key.exec_id)
            .ok_or_else(|| ContainerError::NotFound(key.exec_id.clone()))
    }
}

/// All containers of the pod.
#[derive(Debug)]
pub struct Containers {
    table: Mutex<Table>,
    /// Told whenever a process of ours has ended.
    ended: Notify,
    /// Where ends and shortages of memory are told.
    pub events: std::sync::Arc<EventLog>,
    /// The processes' streams.
    pub streams: std::sync::Arc<Streams>,
    oom: OomWatch,
}

impl Containers {
    /// An empty table.
    ///
    /// # Errors
    ///
    /// What inotify_init1(2) said.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            table: Mutex::default(),
            ended: Notify::new(),
            events: std::sync::Arc::default(),
            streams: std::sync::Arc::default(),
            oom: OomWatch::new()?,
        })
    }

    /// Takes note of the pod's user namespace, in which its containers are made.
    pub fn set_users(&self, users: Option<PodUsers>) {
        self.table().pod_users = users;
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Checks a container's or exec's id.
///
/// # Errors
///
/// [`ContainerError::Malformed`] for an empty or overlong one.
pub fn check_id(id: &str) -> Result<(), ContainerError> {
    if id.is_empty() || id.len() > MAX_ID {
        return Err(ContainerError::Malformed("an id is empty or too long"));
    }
    Ok(())
}
