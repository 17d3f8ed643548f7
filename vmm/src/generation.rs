//! The number that tells a guest that it goes on from a copy: what was unique in it, such as the
//! state of its random number generator, is so no more.

use std::io;

use podvisor_devices::GuestMemory;
use podvisor_devices::legacy::GedEvent;
use thiserror::Error;
use vm_memory::{Bytes as _, GuestMemoryError};

use crate::arch::layout;
use crate::machine::Machine;

/// Why a guest could not be told.
#[derive(Debug, Error)]
pub enum GenerationError {
    /// Its memory does not have the place.
    #[error("guest memory has no place for the generation ID")]
    Memory(#[from] GuestMemoryError),
    /// The machine was saved without the device.
    #[error("the VM has no generation ID device")]
    NoDevice,
    /// The interrupt cannot be raised.
    #[error("cannot interrupt the guest")]
    Interrupt(#[source] io::Error),
}

/// Writes `id` where ACPI says that it is.
pub(crate) fn write(id: u128, memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    let place = layout::GENERATION_ID.start();
    memory.write_slice(&id.to_le_bytes(), place)
}

fn read(memory: &GuestMemory) -> Result<u128, GuestMemoryError> {
    let mut bytes = [0; 16];
    memory.read_slice(&mut bytes, layout::GENERATION_ID.start())?;
    Ok(u128::from_le_bytes(bytes))
}

impl Machine {
    /// Gives the guest another `id` and tells it so, unless it is the one it has.
    pub(crate) fn renew_generation(&self, id: u128) -> Result<(), GenerationError> {
        let memory = self.ram.guest_memory();
        if read(memory)? == id {
            return Ok(());
        }
        write(id, memory)?;
        let events = self.platform.events().ok_or(GenerationError::NoDevice)?;
        events
            .raise(GedEvent::Generation)
            .map_err(GenerationError::Interrupt)
    }
}
