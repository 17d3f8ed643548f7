//! The few devices of a PC that Linux needs besides virtio: a serial port, the registers of
//! hardware-reduced ACPI, and the keyboard controller's reset line.

pub mod acpi_pm;
pub mod cpu_slots;
pub mod ged;
pub mod i8042;
pub mod serial;

use std::sync::Arc;

pub use acpi_pm::AcpiPm;
pub use cpu_slots::{CpuSlot, CpuSlots, Ejection};
pub use ged::{Ged, GedEvent};
pub use i8042::I8042;
pub use serial::Serial;

/// What a guest asks of its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest entered the soft-off state S5.
    PowerOff,
    /// The guest wrote ACPI's reset register.
    AcpiReset,
    /// The guest pulsed the keyboard controller's reset line.
    KeyboardReset,
}

/// Told of every [`MachineEvent`], on the vCPU thread that caused it; it must not block.
pub type MachineEvents = Arc<dyn Fn(MachineEvent) + Send + Sync>;
