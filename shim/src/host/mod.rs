//! All privileged work on the host. It goes through one trait with requests of a closed set that
//! can be serialised, so that it could move into a process of its own.

mod apparmor;
pub mod cgroup;
mod cgroup_metrics;
mod disk;
mod layers;
mod link_socket;
mod listeners;
mod local;
mod mount_options;
mod mount_table;
mod namespace;
mod nat;
mod neighbours;
mod overlay;
mod owners;
mod pod_files;
mod questions;
pub mod record;
mod redirect;
mod rootfs;
mod route_socket;
mod scan;
mod setup;
mod sk_lookup;
mod volume;
mod volume_origin;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use podvisor_devices::net::{Tap, TapError, VhostNet};
use podvisor_proto::agent::v1::NetworkConfig;
use podvisor_proto::cgroups::Metrics;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::pod::files::PodFiles;

pub use apparmor::ApparmorError;
use cgroup::CgroupError;
pub use link_socket::{LinkSocket, LinkSocketError};
pub use listeners::{ListenError, NamespaceListeners};
pub use local::LocalHost;
pub use namespace::NamespaceError;
pub use nat::NatNetwork;
pub use pod_files::PodFilesError;
pub use rootfs::{MountError, unmount_all};
pub use route_socket::RouteError;
pub use scan::ScanError;
pub use setup::{
    SetupError, allowed_cpus, be_small, host_name, private_mounts, set_oom_score, trim_heap,
};
pub use volume_origin::{MemoryOrigin, Ownership, VolumeOrigin};

use crate::pod::users::UserMaps;
use crate::pod::volume::Propagation;

/// Work that a pod needs of its host.
pub trait HostOps: Send + Sync + 'static {
    /// Makes a tap beside every interface of a network namespace.
    ///
    /// # Errors
    /// [`HostError`]; no tap is left.
    fn open_taps(&self, request: &TapsRequest) -> Result<Vec<Nic>, HostError>;

    /// Gives every interface of a network namespace the hardware address that is asked for, and else
    /// the one that its name has in a machine. Belongs before [`Self::open_taps`].
    ///
    /// # Errors
    /// [`HostError`].
    fn set_macs(&self, request: &MacRequest) -> Result<(), HostError>;

    /// Opens a socket on every tap for a guest that asks its network for its address, and keeps its
    /// questions from the cluster's network. Belongs between [`Self::open_taps`] and
    /// [`Self::redirect`].
    ///
    /// # Errors
    /// [`HostError`].
    fn open_links(&self, request: &NetworkRequest) -> Result<Vec<LinkSocket>, HostError>;

    /// Redirects all traffic between interfaces and their taps, or translates it, and tells the namespace's
    /// addresses, routes, rules and neighbours.
    ///
    /// # Errors
    /// [`HostError`].
    fn redirect(&self, request: &TapsRequest) -> Result<NetworkConfig, HostError>;

    /// Removes what [`Self::redirect`] has made. A namespace that is gone is no error.
    ///
    /// # Errors
    /// [`HostError`].
    fn release_network(&self, request: &NetworkRequest) -> Result<(), HostError>;

    /// Takes all TCP connections that are made inside the namespace.
    ///
    /// # Errors
    /// [`HostError::Listen`]; nothing is changed then.
    fn listen(&self, request: &NetworkRequest) -> Result<NamespaceListeners, HostError>;

    /// Mounts a container's root file system.
    ///
    /// # Errors
    /// [`HostError`]; nothing is mounted then.
    fn mount_rootfs(&self, request: &RootfsRequest) -> Result<(), HostError>;

    /// Unmounts everything at `target`. A path that is no mount point is no error.
    ///
    /// # Errors
    /// [`HostError`].
    fn unmount(&self, target: &Path) -> Result<(), HostError>;

    /// Opens a folder or file for export, without access to its content (`O_PATH`).
    ///
    /// # Errors
    /// [`HostError`].
    fn open_path(&self, path: &Path) -> Result<OwnedFd, HostError>;

    /// The compiled policy of one of the host's AppArmor profiles.
    ///
    /// # Errors
    /// [`HostError::Apparmor`].
    fn apparmor_policy(&self, profile: &str) -> Result<Vec<u8>, HostError>;

    /// Tells what lies at a volume's path.
    ///
    /// # Errors
    /// [`HostError::Open`].
    fn inspect_volume(&self, path: &Path) -> Result<VolumeOrigin, HostError>;

    /// Opens a volume for export, without access to its content (`O_PATH`), with the mounts that
    /// are below it, and those that will be as far as its propagation says.
    ///
    /// # Errors
    /// [`HostError::Open`].
    fn open_volume(&self, request: &VolumeRequest) -> Result<OwnedFd, HostError>;

    /// Opens a block device.
    ///
    /// # Errors
    /// [`HostError::Disk`].
    fn open_disk(&self, request: &DiskRequest) -> Result<File, HostError>;

    /// Sets how likely the host's OOM killer takes the pod, -1000 to 1000.
    ///
    /// # Errors
    /// [`HostError`].
    fn set_oom_score(&self, score: i64) -> Result<(), HostError>;

    /// Moves this process to a leaf of the cgroup tree (relative to its root), which is made with
    /// its parents; yields the groups that were made, innermost first.
    ///
    /// # Errors
    /// [`HostError`].
    fn enter_cgroup(&self, leaf: &Path) -> Result<Vec<PathBuf>, HostError>;

    /// Writes the files that a pod's containers share.
    ///
    /// # Errors
    /// [`HostError`].
    fn write_pod_files(&self, files: &PodFiles) -> Result<(), HostError>;

    /// What the processes of a leaf of the cgroup tree use.
    ///
    /// # Errors
    /// [`HostError::Cgroup`].
    fn metrics(&self, leaf: &Path) -> Result<Metrics, HostError>;

    /// Keeps a pod on some of the host's CPUs.
    ///
    /// # Errors
    /// [`HostError`], also when the host's groups do not have the `cpuset` controller.
    fn confine(&self, request: &ConfineRequest) -> Result<(), HostError>;
}

/// The CPUs that a pod may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfineRequest {
    /// The leaf that the pod's server is in, relative to the root of the cgroup tree.
    pub cgroup: PathBuf,
    /// A list such as `0-2,5` (cpuset(7)); empty for all.
    pub cpus: String,
}

/// A pod's network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRequest {
    /// Path of the namespace.
    pub namespace: PathBuf,
}

/// Taps for a pod's interfaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapsRequest {
    /// Path of the namespace.
    pub namespace: PathBuf,
    /// Interfaces that are to be there, and what is asked of their cards.
    pub cards: Vec<CardRequest>,
}

/// Hardware addresses for a pod's interfaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MacRequest {
    /// Path of the namespace.
    pub namespace: PathBuf,
    /// What they are made from, where none is asked for.
    pub seed: [u8; 32],
    /// Interfaces that are to be there, and what is asked of their cards.
    pub cards: Vec<CardRequest>,
}

/// What a pod asks of the card of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardRequest {
    /// The interface's name.
    pub name: String,
    /// Its hardware address.
    pub mac: Option<[u8; 6]>,
    /// Its MTU in bytes: at most the interface's.
    pub mtu: Option<u16>,
    /// Its pairs of queues.
    pub queues: u8,
    /// Whether the interface keeps its addresses, and the guest has a private one.
    pub nat: bool,
}

/// A block device by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DiskRequest {
    /// The major number.
    pub major: u64,
    /// The minor number.
    pub minor: u64,
    /// Whether it is only read.
    pub read_only: bool,
}

/// A folder or file to be exported.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VolumeRequest {
    /// Where it is.
    pub path: PathBuf,
    /// Whether later mounts appear.
    pub propagation: Propagation,
    /// The owners of its files, where they are others than its file system says; not with
    /// propagation.
    pub owners: Option<UserMaps>,
}

/// A container's root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootfsRequest {
    /// Where it is to be.
    pub target: PathBuf,
    /// What to mount there, in order.
    pub mounts: Vec<HostMount>,
}

/// One mount as containerd's snapshotters describe it (`api/types/mount.proto`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMount {
    /// File system type, or `bind`.
    pub kind: String,
    /// Source device or folder.
    pub source: String,
    /// Flags and data, in the notation of fstab.
    pub options: Vec<String>,
}

/// A network card to be: an interface of the namespace with its tap.
pub struct Nic {
    /// The interface's name.
    pub name: String,
    /// Its hardware address, which the guest takes over.
    pub mac: [u8; 6],
    /// Its card's MTU in bytes.
    pub mtu: u32,
    /// The tap beside it; at least one queue.
    pub queues: Vec<NicQueue>,
    /// The guest's network, where it has not the interface's addresses.
    pub nat: Option<NatNetwork>,
}

/// A pair of queues of a card.
pub struct NicQueue {
    /// A queue of the tap.
    pub tap: Tap,
    /// The host's kernel moves its frames, where it can.
    pub vhost: Option<VhostNet>,
}

/// Why privileged work failed.
#[derive(Debug, Error)]
pub enum HostError {
    /// The network namespace cannot be entered.
    #[error("cannot enter the pod's network namespace")]
    Namespace(#[from] NamespaceError),
    /// The kernel refused a change of links or traffic control.
    #[error("cannot set up the pod's network")]
    Route(#[from] RouteError),
    /// The namespace has something that a guest cannot be given.
    #[error("the pod's network cannot be taken over")]
    Scan(#[from] ScanError),
    /// An interface that a pod speaks of is missing.
    #[error("the pod's network has no interface {name} that is up: there are {there}")]
    NoInterface {
        /// Its name.
        name: String,
        /// Those that are there.
        there: String,
    },
    /// An interface without an address that could be translated.
    #[error("interface {0} has no IPv4 address, and mode nat translates no other")]
    NoAddress(String),
    /// A card with longer packets than its interface has.
    #[error("interface {interface} has an MTU of {most}: its card cannot have {wanted}")]
    Mtu {
        /// The interface.
        interface: String,
        /// Its MTU.
        most: u32,
        /// What was asked for.
        wanted: u16,
    },
    /// No tap.
    #[error("cannot make a tap for interface {interface}")]
    Tap {
        /// The interface.
        interface: String,
        /// Why.
        source: TapError,
    },
    /// A guest cannot be told its addresses.
    #[error("cannot serve a guest on its tap")]
    Link(#[from] LinkSocketError),
    /// Connections cannot be taken.
    #[error("cannot take connections to the pod's ports")]
    Listen(#[from] ListenError),
    /// The pod cannot be set up.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The files that containers share are not there.
    #[error("the pod's files")]
    PodFiles(#[from] PodFilesError),
    /// The pod's cgroup cannot be changed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// No root file system.
    #[error("cannot mount the root file system")]
    Mount(#[from] MountError),
    /// A profile cannot be had.
    #[error(transparent)]
    Apparmor(#[from] ApparmorError),
    /// A block device cannot be opened.
    #[error("cannot open block device {major}:{minor}")]
    Disk {
        /// Its major number.
        major: u64,
        /// Its minor number.
        minor: u64,
        /// What the host said.
        source: io::Error,
    },
    /// A file cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}
