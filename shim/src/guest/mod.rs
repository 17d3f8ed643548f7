//! A pod's guest as the sandbox sees it: a machine behind a trait, so that all above it is tested
//! without KVM, and the agent in it.

pub mod balloon;
pub mod boot;
pub mod card;
pub mod client;
mod console;
pub mod disk;
pub mod extras;
pub mod launch;
pub mod pet;
pub mod pet_disk;
pub mod port;
pub mod qga;

mod vsock;

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use podvisor_devices::fs::{ExportError, ExportOptions, Writes};
use podvisor_vmm::{
    EndReason, MemoryBacking, MemoryPlugError, MemorySize, MemoryState, OrderError, Phase,
    PinError, Processors, ResetPolicy, SmbiosConfig, StartError, VcpuPlugError, VcpuState, Vcpus,
};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use self::card::Card;
use self::disk::{Disk, DiskError};
use self::extras::Extras;
use self::pet_disk::PetDisk;
use crate::pod::binding::Binding;
use crate::pod::room::Room;

/// A connection to the guest.
pub type Stream = Box<dyn Duplex>;

/// A connection's two directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A future of a connection.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

/// What a guest does that shows outside of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// How often its processors left guest mode, where KVM counts that.
    pub exits: Option<u64>,
    /// Packets that its vsock driver sent.
    pub packets: u64,
}

/// A running machine.
pub trait Machine: Send + Sync + 'static {
    /// Ends it without asking the guest. Returns at once.
    fn stop(&self);

    /// The last of what the guest wrote to its console, at most 64 KiB.
    fn console_tail(&self) -> Vec<u8>;

    /// Its console's two directions; what it prints before the first call is not lost.
    fn console(&self) -> Stream;

    /// The port at which a QEMU guest agent may be; once, and only of one that boots its own disk.
    fn guest_agent_port(&self) -> Option<Stream>;

    /// Presses its power button. One that does not listen is none the worse for it.
    fn press_power_button(&self);

    /// Stops all of it, with everything as it is. Blocks for a moment.
    ///
    /// # Errors
    /// [`OrderError::Ended`].
    fn pause(&self) -> Result<(), OrderError>;

    /// Lets a stopped one go on.
    ///
    /// # Errors
    /// [`OrderError::Ended`].
    fn resume(&self) -> Result<(), OrderError>;

    /// Asks for processors in all. New ones are there when this returns, which takes a moment; others go
    /// when the guest lets go of them.
    ///
    /// # Errors
    /// [`VcpuPlugError`].
    fn set_vcpus(&self, wanted: Vcpus) -> Result<(), VcpuPlugError>;

    /// How its processors stand.
    fn vcpus(&self) -> VcpuState;

    /// Lets each processor run on its own CPUs of the host only; those without any are free.
    ///
    /// # Errors
    /// [`PinError`].
    fn pin(&self, host_cpus: &[Vec<usize>]) -> Result<(), PinError>;

    /// Asks the guest to have memory in all. It follows as far and as fast as it can.
    ///
    /// # Errors
    /// [`MemoryPlugError`].
    fn set_memory(&self, wanted: MemorySize) -> Result<(), MemoryPlugError>;

    /// How its memory stands; None when it cannot change.
    fn memory(&self) -> Option<MemoryState>;

    /// When the steps of its start were done.
    fn timeline(&self) -> Vec<Phase>;

    /// What its guest has done so far, as far as it shows outside.
    fn activity(&self) -> Activity;

    /// Connects to a port of the guest.
    fn connect(&self, port: u32) -> Connecting;

    /// Waits for the guest's one connection to the ready port.
    fn accept_ready(&self) -> Connecting;

    /// Makes a folder or file of the host appear in the guest's shared folder.
    ///
    /// # Errors
    /// [`ExportError`].
    fn add_export(
        &self,
        name: &str,
        source: OwnedFd,
        options: ExportOptions,
    ) -> Result<(), ExportError>;

    /// Lets the guest change at least this much of an export.
    ///
    /// # Errors
    /// [`ExportError::Missing`].
    fn allow_writes(&self, name: &str, writes: Writes) -> Result<(), ExportError>;

    /// Takes it away again. Blocks until the guest's requests in it are over, at most 5 s.
    ///
    /// # Errors
    /// [`ExportError`].
    fn remove_export(&self, name: &str) -> Result<(), ExportError>;

    /// Plugs a disk in. The guest finds it when it scans its bus.
    ///
    /// # Errors
    /// [`DiskError`]; nothing of the disk is left.
    fn add_disk(&self, disk: Disk) -> Result<(), DiskError>;

    /// Takes a disk away. Blocks until what it is doing is done.
    ///
    /// # Errors
    /// [`DiskError::Plug`] when there is none of that name.
    fn remove_disk(&self, name: &str) -> Result<(), DiskError>;
}

/// What a machine is to be.
pub struct MachinePlan {
    /// Its size, and how far it can grow.
    pub room: Room,
    /// How it is bound to its host.
    pub binding: Binding,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// Its initial image.
    pub initrd: PathBuf,
    /// Further words for the kernel.
    pub kernel_args: Vec<String>,
    /// Its processors, as many as its size says.
    pub processors: Processors,
    /// What the host keeps guest memory in.
    pub memory_backing: MemoryBacking,
    /// What it says it is.
    pub smbios: Option<SmbiosConfig>,
    /// Its entropy, balloon and console.
    pub extras: Extras,
    /// Its network cards.
    pub cards: Vec<Card>,
    /// What it has beside, when it boots a disk of its own.
    pub pet: Option<PetParts>,
}

/// What a machine that boots a disk of its own has beside.
pub struct PetParts {
    /// Its disks, in the order in which it finds them.
    pub disks: Vec<PetDisk>,
    /// Folders and files of its host that it can mount.
    pub shares: Vec<SharedFolder>,
    /// What its reset leads to.
    pub on_reset: ResetPolicy,
    /// What it leads to when it switches itself off.
    pub on_poweroff: ResetPolicy,
    /// Changes when its disk is another one.
    pub generation: u128,
    /// How long it may let its watchdog wait, if it has one.
    pub watchdog: Option<Duration>,
}

/// A folder or file of the host, in the tree that the guest can mount.
pub struct SharedFolder {
    /// Its name there.
    pub name: String,
    /// What lies there (`O_PATH`).
    pub folder: OwnedFd,
    /// What the guest may do with it.
    pub options: ExportOptions,
}

/// A machine that was started.
pub struct Launched {
    /// The machine.
    pub machine: Arc<dyn Machine>,
    /// Why it ended, once it has.
    pub ended: watch::Receiver<Option<EndReason>>,
    /// How often it started over.
    pub restarts: watch::Receiver<u64>,
}

/// Starts machines.
pub trait Launcher: Send + Sync + 'static {
    /// Starts one. Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`LaunchError`]; nothing of the machine is left.
    fn launch(&self, plan: MachinePlan) -> Result<Launched, LaunchError>;
}

/// Why there is no machine.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// A file of the release is missing.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A device cannot be made.
    #[error("cannot make device {device}")]
    Device {
        /// Which.
        device: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A value that no machine can have.
    #[error("cannot configure the VM")]
    Config(#[from] podvisor_vmm::config::ConfigError),
    /// The VMM refuses.
    #[error("cannot start the VM with kernel {kernel}")]
    Start {
        /// The kernel.
        kernel: PathBuf,
        /// Why.
        source: StartError,
    },
}
