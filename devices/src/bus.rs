//! Address ranges and the devices behind them, for port and memory-mapped I/O alike.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use thiserror::Error;

/// Something that answers reads and writes within its own address range.
///
/// Accesses come from several vCPU threads at once. They must not block for long: the vCPU
/// stands still meanwhile.
pub trait BusDevice: Send + Sync {
    /// Fills `data` with what a read of `data.len()` bytes at `offset` yields.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes a write of `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a device could not be placed on a bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or wraps around the address space.
    #[error("range {base:#x}+{len:#x} is empty or wraps")]
    InvalidRange {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Another device answers in that range.
    #[error("range {base:#x}+{len:#x} overlaps a device at {other:#x}")]
    Overlap {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
        /// First address of the device that is there.
        other: u64,
    },
}

struct Slot {
    len: u64,
    device: Arc<dyn BusDevice>,
}

/// Maps addresses to devices; devices may come and go while the guest runs.
#[derive(Default)]
pub struct Bus {
    slots: RwLock<BTreeMap<u64, Slot>>,
}

impl Bus {
    /// An empty bus.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Places `device` at `base..base + len`.
    ///
    /// # Errors
    /// [`BusError`] when the range is invalid or taken.
    pub fn insert(&self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let end = base.checked_add(len).filter(|_| len > 0);
        let end = end.ok_or(BusError::InvalidRange { base, len })?;
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((&other, slot)) = slots.range(..end).next_back()
            && other + slot.len > base
        {
            return Err(BusError::Overlap { base, len, other });
        }
        slots.insert(base, Slot { len, device });
        Ok(())
    }

    /// Takes away the device placed at `base`, if any.
    pub fn remove(&self, base: u64) -> Option<Arc<dyn BusDevice>> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.remove(&base).map(|slot| slot.device)
    }

    /// Reads from the device at `address`. Without one, `data` becomes all ones (as an
    /// unclaimed bus cycle reads) and the answer is `false`.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        match self.find(address, data.len()) {
            Some((offset, device)) => {
                device.read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Writes to the device at `address`; `false` when nobody is there.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        match self.find(address, data.len()) {
            Some((offset, device)) => {
                device.write(offset, data);
                true
            }
            None => false,
        }
    }

    fn find(&self, address: u64, len: usize) -> Option<(u64, Arc<dyn BusDevice>)> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let (base, slot) = slots.range(..=address).next_back()?;
        let offset = address - base;
        let end = offset.checked_add(u64::try_from(len).ok()?)?;
        (end <= slot.len).then(|| (offset, Arc::clone(&slot.device)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder {
        writes: Mutex<Vec<(u64, Vec<u8>)>>,
    }

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.writes.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn accesses_reach_the_device_with_its_own_offsets() {
        let bus = Bus::new();
        let device = Arc::new(Recorder::default());
        bus.insert(0x1000, 0x10, device.clone()).unwrap();
        let mut data = [0; 2];
        assert!(bus.read(0x1004, &mut data));
        assert_eq!(data, [4, 4]);
        assert!(bus.write(0x100c, &[1, 2, 3, 4]));
        assert_eq!(*device.writes.lock().unwrap(), [(0xc, vec![1, 2, 3, 4])]);
    }

    #[test]
    fn an_access_across_a_device_end_reaches_nobody_and_reads_all_ones() {
        let bus = Bus::new();
        bus.insert(0x1000, 0x10, Arc::new(Recorder::default()))
            .unwrap();
        let mut data = [0; 4];
        assert!(!bus.read(0x100e, &mut data));
        assert_eq!(data, [0xff; 4]);
        assert!(!bus.write(u64::MAX, &[0, 0]));
    }

    #[test]
    fn overlapping_and_wrapping_ranges_are_refused() {
        let bus = Bus::new();
        bus.insert(0x1000, 0x10, Arc::new(Recorder::default()))
            .unwrap();
        for (base, len) in [(0xff8, 0x10), (0x100f, 1), (0x0, 0x2000)] {
            let error = bus.insert(base, len, Arc::new(Recorder::default()));
            assert_eq!(
                error,
                Err(BusError::Overlap {
                    base,
                    len,
                    other: 0x1000
                })
            );
        }
        let error = bus.insert(u64::MAX, 2, Arc::new(Recorder::default()));
        assert_eq!(
            error,
            Err(BusError::InvalidRange {
                base: u64::MAX,
                len: 2
            })
        );
        assert!(bus.remove(0x1000).is_some());
        bus.insert(0xff8, 0x10, Arc::new(Recorder::default()))
            .unwrap();
    }
}
