//! Why a task's call fails.

use std::path::PathBuf;

use podvisor_devices::fs::ExportError;
use podvisor_proto::ttrpc::Status;
use podvisor_vmm::{OrderError, PinError};
use thiserror::Error;

use super::growth::GrowthError;
use super::process::Refusal;
use crate::annotations::RefusedAnnotation;
use crate::config::ConfigError;
use crate::guest::boot::BootError;
use crate::guest::disk::DiskError;
use crate::guest::qga::QgaError;
use crate::host::HostError;
use crate::io::StdioError;
use crate::machine::disks::DisksError;
use crate::machine::seed::SeedPlanError;
use crate::machine::source::SourceError;
use crate::machine::store::StoreError;
use crate::pod::BundleError;
use crate::pod::binding::BindingError;
use crate::pod::cgroup_path::CgroupPathError;
use crate::pod::guest_spec::GuestSpecError;
use crate::pod::hardware::HardwareError;
use crate::pod::network::HostNetworkError;
use crate::pod::resources::ResourcesError;
use crate::pod::room::RoomError;
use crate::pod::sizing::SizeError;
use crate::pod::volume::VolumeError;
use crate::sandbox::mirror::MirrorError;
use crate::sandbox::pet_file_disk::FileDiskError;

/// Why a task's call fails.
#[derive(Debug, Error)]
pub enum TaskError {
    /// No such container or process.
    #[error("{0} not found")]
    NotFound(String),
    /// There is one of that name.
    #[error("{0} exists already")]
    Exists(String),
    /// The process's state does not allow it.
    #[error("{process}")]
    Refused {
        /// The process.
        process: String,
        /// Why not.
        source: Refusal,
    },
    /// The pod has no guest, and why.
    #[error("the pod's VM is not running: {0}")]
    NoGuest(String),
    /// The call is about containers in a guest, and this one is a machine of its own.
    #[error("this container is a machine of its own: that can be done to containers only")]
    IsMachine,
    /// What a container brings cannot be booted.
    #[error("cannot find the machine's disk")]
    Source(#[from] SourceError),
    /// Its disks cannot be used.
    #[error(transparent)]
    Disks(#[from] DisksError),
    /// Its volume cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its network is not what its cards are to be.
    #[error("podvisor.io/nics")]
    Nics(#[source] HostError),
    /// It cannot be told who it is.
    #[error(transparent)]
    Seed(#[from] SeedPlanError),
    /// The host does not tell what a disk is.
    #[error("cannot look at a disk")]
    Origin(#[source] std::io::Error),
    /// Our agent does not answer in the machine.
    #[error("our agent, which cloud-init starts, is not connected in this machine")]
    NoAgent,
    /// Nothing in the machine takes commands.
    #[error(
        "nothing in this machine takes commands: our agent, which cloud-init starts, is not connected, \
         and qemu-guest-agent does not answer"
    )]
    NoCommands(#[source] QgaError),
    /// The container has not been started, or has ended.
    #[error("{0} is not running")]
    NotRunning(String),
    /// The bundle cannot be used.
    #[error("the container's bundle")]
    Bundle(#[from] BundleError),
    /// The pod's group cannot be told.
    #[error(transparent)]
    Cgroup(#[from] CgroupPathError),
    /// The node's configuration cannot be used.
    #[error("the node's configuration")]
    Config(#[from] ConfigError),
    /// An annotation cannot be honoured.
    #[error(transparent)]
    Annotation(#[from] RefusedAnnotation),
    /// No machine fits the limits.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// No machine has such hardware.
    #[error(transparent)]
    Hardware(#[from] HardwareError),
    /// The pod wants the host's network.
    #[error(transparent)]
    HostNetwork(#[from] HostNetworkError),
    /// The spec cannot be honoured in a guest.
    #[error(transparent)]
    Spec(#[from] GuestSpecError),
    /// The machine cannot give a container what it asks for.
    #[error(transparent)]
    Resources(#[from] ResourcesError),
    /// The machine has no room for a container's limits.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// The machine cannot be bound to its host's processors.
    #[error(transparent)]
    Binding(#[from] BindingError),
    /// Its processors cannot be pinned.
    #[error("podvisor.io/cpu-pinning")]
    Pin(#[from] PinError),
    /// The machine does not grow.
    #[error("the pod's VM does not grow")]
    Growth(#[from] GrowthError),
    /// The machine did not do as it was told.
    #[error("the machine")]
    Order(#[source] OrderError),
    /// The message makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The server could not set itself up when it was started.
    #[error("the pod's shim: {0}")]
    Setup(String),
    /// The guest does not come up.
    #[error("cannot boot")]
    Boot(#[from] BootError),
    /// The host refused.
    #[error("the host")]
    Host(#[from] HostError),
    /// A folder cannot be given to the guest.
    #[error("cannot export to the guest")]
    Export(#[from] ExportError),
    /// A bind mount of the container cannot be had.
    #[error("mounts: {destination}")]
    Mount {
        /// Where the container would see it.
        destination: PathBuf,
        /// Why not.
        source: Box<TaskError>,
    },
    /// A volume cannot be a disk.
    #[error("podvisor.io/disks: {path}")]
    FileDisk {
        /// Where the container would see it.
        path: String,
        /// Why not.
        source: FileDiskError,
    },
    /// A disk cannot be given to the guest.
    #[error("cannot attach a disk")]
    Disk(#[from] DiskError),
    /// A volume is of a kind that a VM cannot have.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A volume cannot be copied into the guest.
    #[error("cannot mirror a volume")]
    Mirror(#[from] MirrorError),
    /// A stream cannot be connected.
    #[error("standard streams")]
    Stdio(#[from] StdioError),
    /// The agent refused or did not answer.
    #[error("{}", .0.message())]
    Agent(Status),
    /// The host allows no thread to stand for the container.
    #[error("the pod's shim cannot start a thread")]
    Thread(#[source] std::io::Error),
    /// A worker of this process failed, or the pod is gone.
    #[error("the pod's shim is shutting down")]
    Gone,
}

impl From<Status> for TaskError {
    fn from(status: Status) -> Self {
        Self::Agent(status)
    }
}

impl From<tokio::task::JoinError> for TaskError {
    fn from(_: tokio::task::JoinError) -> Self {
        Self::Gone
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
