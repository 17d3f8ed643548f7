//! One virtual machine on KVM: configuration, memory, boot, interrupts, processors, state.
//!
//! [`Vm::start`] turns a [`VmConfig`] into a running machine on its own threads; the
//! [`VmHandle`] drives it, [`VmEvent`]s tell how it fares. This crate knows no containers and
//! no async runtime. The machine never ends the process it lives in.

pub mod arch;
pub mod config;
pub mod confine;
pub mod event;
pub mod exit;
pub mod handle;
pub mod host;
pub mod memory;
pub mod processors;
pub mod smbios;
pub mod state;

mod boot;
mod machine;
mod pci;
mod platform;
mod restart;
pub mod seccomp;
mod timeline;
mod vcpu;

pub use config::{
    ConfigError, Console, ConsoleOutput, DeviceSlot, KernelArgs, MemorySize, ResetPolicy, Vcpus,
    VmConfig,
};
pub use confine::{ThreadKind, spawn_io_loop};
pub use event::{EndReason, EventSink, RestartCause, VmEvent};
pub use handle::{OrderError, RestoreError, Vm, VmHandle};
pub use machine::StartError;
pub use memory::{GuestRam, MemoryBacking};
pub use pci::PciError;
pub use platform::PlatformError;
pub use processors::{CpuLevel, CpuModel, Processors, Topology};
pub use restart::PowerOnError;
pub use smbios::SmbiosConfig;
pub use state::StateError;
pub use timeline::Phase;
pub use vcpu::{ExitCounts, PinError, StatsError};
