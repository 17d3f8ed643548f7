//! What a machine says it is: SMBIOS tables (DMTF DSP0134, version 3.0), which a guest shows under
//! `/sys/class/dmi/id` and reads its identity and settings from.

mod structure;
mod table;
mod text;
mod uuid;

use podvisor_devices::GuestMemory;
use thiserror::Error;
use vm_memory::{Bytes, GuestMemoryError};

pub use text::{OemString, OemStrings, SmbiosText, Text, TextError};
pub use uuid::{Uuid, UuidError};

use crate::arch::layout;
use crate::config::MemorySize;
use crate::processors::Topology;

/// What a machine says it is. What is `None` is not said, but for a few fields that no machine
/// goes without.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SmbiosConfig {
    /// The machine.
    pub system: SystemIdentity,
    /// Its mainboard.
    pub board: BoardIdentity,
    /// Its case.
    pub chassis: ChassisIdentity,
    /// Free text for programs in the guest.
    pub oem_strings: OemStrings,
}

/// The machine: type 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Who made it; by default Podvisor.
    pub manufacturer: Option<SmbiosText>,
    /// What it is; by default a Podvisor machine.
    pub product: Option<SmbiosText>,
    /// Which version of that.
    pub version: Option<SmbiosText>,
    /// Its serial number.
    pub serial: Option<SmbiosText>,
    /// Its identity.
    pub uuid: Option<Uuid>,
    /// How it is sold.
    pub sku: Option<SmbiosText>,
    /// What it belongs to.
    pub family: Option<SmbiosText>,
}

/// The mainboard: type 2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BoardIdentity {
    /// Who made it; by default Podvisor.
    pub manufacturer: Option<SmbiosText>,
    /// What it is.
    pub product: Option<SmbiosText>,
    /// Which version of that.
    pub version: Option<SmbiosText>,
    /// Its serial number.
    pub serial: Option<SmbiosText>,
    /// Its owner's number for it.
    pub asset: Option<SmbiosText>,
    /// Where in the case it is.
    pub location: Option<SmbiosText>,
}

/// The case: type 3.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChassisIdentity {
    /// Who made it; by default Podvisor.
    pub manufacturer: Option<SmbiosText>,
    /// Which version of it.
    pub version: Option<SmbiosText>,
    /// Its serial number.
    pub serial: Option<SmbiosText>,
    /// Its owner's number for it.
    pub asset: Option<SmbiosText>,
    /// How it is sold.
    pub sku: Option<SmbiosText>,
}

/// What the tables tell of the machine beside its identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its processors.
    pub topology: Topology,
    /// EAX and, in the upper half, EDX of their CPUID leaf 1.
    pub processor_id: u64,
    /// Its memory.
    pub memory: MemorySize,
}

/// Why the tables could not be written.
#[derive(Debug, Error)]
pub enum SmbiosError {
    /// They are larger than their place; a defect of the memory map.
    #[error("{0} bytes of SMBIOS tables do not fit their place")]
    NoRoom(usize),
    /// Guest memory ends before their place.
    #[error("cannot write the SMBIOS tables")]
    Memory(#[source] GuestMemoryError),
}

/// Writes entry point and tables where a guest looks for them.
///
/// # Errors
/// [`SmbiosError`] when they do not fit.
pub fn write(config: &SmbiosConfig, shape: Shape, memory: &GuestMemory) -> Result<(), SmbiosError> {
    let place = layout::SMBIOS;
    let bytes = table::build(config, shape, place.base);
    if bytes.len() as u64 > place.len {
        return Err(SmbiosError::NoRoom(bytes.len()));
    }
    memory
        .write_slice(&bytes, place.start())
        .map_err(SmbiosError::Memory)
}

#[cfg(test)]
mod tests;
