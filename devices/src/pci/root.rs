//! The one PCI bus and its memory-mapped configuration window (PCI Firmware 3.2, chapter 4).
//!
//! The window covers bus 0 only; nobody answers at the old ports 0xCF8 and 0xCFC, so that
//! guests use the window for all registers. Functions other than 0 of a device do not exist.

use std::sync::{Arc, PoisonError, RwLock};

use thiserror::Error;

use super::config::{Class, ConfigSpace, Identity};
use crate::bus::BusDevice;

/// Length in bytes of the configuration window of one bus.
pub const WINDOW_LEN: u64 = 1 << 20;
/// Device numbers on a bus.
pub const SLOTS: u8 = 32;

const FUNCTION_BITS: u32 = 12;
const SLOT_BITS: u32 = 15;

/// The host bridge: vendor Red Hat, its generic PCI host bridge, which Linux knows and has
/// no quirks for.
const HOST_BRIDGE: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: Class {
        base: 0x06,
        sub: 0x00,
        interface: 0x00,
    },
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// Function 0 of a device on the bus. Accesses lie within one aligned 4-byte word.
pub trait PciFunction: Send + Sync {
    /// Reads configuration registers from `offset` (below 4096) on.
    fn read_config(&self, offset: u16, data: &mut [u8]);
    /// Writes configuration registers from `offset` (below 4096) on.
    fn write_config(&self, offset: u16, data: &[u8]);
}

/// Why a device cannot be inserted.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SlotError {
    /// The bus has no such device number.
    #[error("there is no PCI slot {0}")]
    Unknown(u8),
    /// Another device has that number.
    #[error("PCI slot {0} is taken")]
    Taken(u8),
}

/// Bus 0 with the host bridge in slot 0. Devices may come and go while the guest runs.
pub struct PciRoot {
    slots: RwLock<[Option<Arc<dyn PciFunction>>; SLOTS as usize]>,
}

impl Default for PciRoot {
    fn default() -> Self {
        Self::new()
    }
}

impl PciRoot {
    /// A bus with nothing but the host bridge.
    #[must_use]
    pub fn new() -> Self {
        let mut slots = [const { None }; SLOTS as usize];
        let bridge: Arc<dyn PciFunction> = Arc::new(HostBridge(ConfigSpace::new(HOST_BRIDGE)));
        if let Some(first) = slots.first_mut() {
            *first = Some(bridge);
        }
        Self {
            slots: RwLock::new(slots),
        }
    }

    /// Puts `function` into `slot` (1..32; 0 is the host bridge's).
    ///
    /// # Errors
    /// [`SlotError`] when there is no such slot or it is taken.
    pub fn insert(&self, slot: u8, function: Arc<dyn PciFunction>) -> Result<(), SlotError> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let entry = slots
            .get_mut(usize::from(slot))
            .ok_or(SlotError::Unknown(slot))?;
        if entry.is_some() {
            return Err(SlotError::Taken(slot));
        }
        *entry = Some(function);
        Ok(())
    }

    /// Takes the function out of `slot`; the host bridge stays.
    pub fn remove(&self, slot: u8) -> Option<Arc<dyn PciFunction>> {
        if slot == 0 {
            return None;
        }
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.get_mut(usize::from(slot))?.take()
    }

    /// The function and register that an access to the window names.
    fn find(&self, offset: u64, len: usize) -> Option<(Arc<dyn PciFunction>, u16)> {
        let register = u16::try_from(offset % (1 << FUNCTION_BITS)).ok()?;
        let function = offset >> FUNCTION_BITS & 0b111;
        let within_word = usize::from(register % 4) + len <= 4;
        if function != 0 || !within_word {
            return None;
        }
        let slot = usize::try_from(offset >> SLOT_BITS).ok()?;
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        Some((Arc::clone(slots.get(slot)?.as_ref()?), register))
    }
}

impl BusDevice for PciRoot {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.find(offset, data.len()) {
            Some((function, register)) => function.read_config(register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, register)) = self.find(offset, data.len()) {
            function.write_config(register, data);
        }
    }
}

/// The host bridge has nothing to program.
struct HostBridge(ConfigSpace);

impl PciFunction for HostBridge {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write_config(&self, _offset: u16, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    struct Function(Mutex<ConfigSpace>);

    impl PciFunction for Function {
        fn read_config(&self, offset: u16, data: &mut [u8]) {
            self.0.lock().unwrap().read(offset, data);
        }
        fn write_config(&self, offset: u16, data: &[u8]) {
            self.0.lock().unwrap().write(offset, data);
        }
    }

    fn function() -> Arc<Function> {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1044,
            ..HOST_BRIDGE
        };
        Arc::new(Function(Mutex::new(ConfigSpace::new(identity))))
    }

    fn word(root: &PciRoot, offset: u64) -> u32 {
        let mut data = [0; 4];
        root.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_host_bridge_is_in_slot_zero_and_stays() {
        let root = PciRoot::new();
        assert_eq!(word(&root, 0), 0x0008_1b36);
        assert!(root.remove(0).is_none());
        assert_eq!(root.insert(0, function()), Err(SlotError::Taken(0)));
    }

    #[test]
    fn absent_devices_and_functions_read_all_ones() {
        let root = PciRoot::new();
        root.insert(3, function()).unwrap();
        for offset in [
            1 << 15,
            (3 << 15) + (1 << 12),
            WINDOW_LEN - 4,
            WINDOW_LEN,
            u64::MAX - 3,
        ] {
            assert_eq!(word(&root, offset), u32::MAX, "{offset:#x}");
            root.write(offset, &[0; 4]);
        }
    }

    #[test]
    fn a_plugged_function_answers_until_it_is_unplugged() {
        let root = PciRoot::new();
        root.insert(31, function()).unwrap();
        let base = 31 << 15;
        assert_eq!(word(&root, base), 0x1044_1af4);
        assert_eq!(word(&root, base + 0x100), 0, "no extended capabilities");
        root.write(base + 4, &[6, 0]);
        let mut command = [0; 2];
        root.read(base + 4, &mut command);
        assert_eq!(command, [6, 0]);
        assert!(root.remove(31).is_some());
        assert_eq!(word(&root, base), u32::MAX);
        assert_eq!(root.insert(32, function()), Err(SlotError::Unknown(32)));
    }

    #[test]
    fn an_access_across_words_reaches_nobody() {
        let root = PciRoot::new();
        let mut data = [0; 4];
        root.read(2, &mut data);
        assert_eq!(data, [0xff; 4]);
        let mut long = [0; 8];
        root.read(0, &mut long);
        assert_eq!(long, [0xff; 8]);
    }
}
