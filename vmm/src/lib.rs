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
pub mod numa;
pub mod processors;
pub mod smbios;
pub mod state;

mod boot;
mod generation;
mod machine;
mod pci;
mod platform;
mod plugged_memory;
mod plugged_vcpus;
mod restart;
pub mod seccomp;
mod timeline;
mod vcpu;

pub use config::{
    ConfigError, Console, ConsoleOutput, DeviceSlot, HotMemory, KernelArgs, MemorySize, PciSlot,
    ResetPolicy, Vcpus, VmConfig, WatchdogConfig,
};
pub use confine::{ThreadKind, spawn_io_loop};
pub use event::{EndReason, EventSink, RestartCause, VmEvent};
pub use generation::GenerationError;
pub use handle::{OrderError, RestoreError, Vm, VmHandle};
pub use machine::StartError;
pub use memory::{GuestRam, MemoryBacking, RamPlan};
pub use numa::Numa;
pub use pci::PciError;
pub use platform::PlatformError;
pub use plugged_memory::{MemoryPlugError, MemoryState};
pub use plugged_vcpus::{VcpuPlugError, VcpuState};
pub use processors::{CpuLevel, CpuModel, Processors, Topology};
pub use restart::PowerOnError;
pub use smbios::SmbiosConfig;
pub use state::StateError;
pub use timeline::Phase;
pub use vcpu::{ExitCounts, MakeError, PinError, StatsError};
