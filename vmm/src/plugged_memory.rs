//! Memory that a running machine gets and gives back: how much there shall be, and how much there is.

use podvisor_devices::virtio::{Mem, MemControl, MemRegion};
use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemory as _, GuestMemoryRegion as _};

use crate::arch::layout::{self, Range};
use crate::config::{DeviceSlot, HotMemory, MemorySize};
use crate::memory::{GuestRam, MemoryError};

/// What the device is called.
const SLOT: &str = "memory";
/// Bytes of a block, the smallest that Linux takes and a host gives as one page.
const BLOCK_LEN: u64 = 2 << 20;
const _: () = assert!(layout::PLUGGED_RAM_STEP.is_multiple_of(BLOCK_LEN));

/// Why a machine's memory is not changed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MemoryPlugError {
    /// It was built without [`crate::VmConfig::hot_memory`].
    #[error("the VM's memory cannot change")]
    Fixed,
    /// Less than it began with, or more than it was built for.
    #[error("{wanted} bytes of memory: the VM can have {min} to {max}")]
    OutOfBounds {
        /// What was asked for.
        wanted: u64,
        /// What it began with.
        min: u64,
        /// The most it can have.
        max: u64,
    },
}

/// A machine's memory in bytes, what it began with included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryState {
    /// What the guest shall have.
    pub requested: u64,
    /// What it has.
    pub present: u64,
    /// The most it can have.
    pub max: u64,
}

/// The bounds of a machine's memory, and the device in between.
pub(crate) struct PluggedMemory {
    control: MemControl,
    min: MemorySize,
    max: MemorySize,
}

/// Where memory is plugged in a machine that begins with `memory`.
pub(crate) fn range(memory: MemorySize, hot: &HotMemory) -> Result<Range, MemoryError> {
    let (memory, max) = (memory.bytes(), hot.max.bytes());
    let plugged = max.checked_sub(memory).filter(|&plugged| plugged > 0);
    let range = plugged.and_then(|plugged| layout::plugged_ram_range(memory, plugged));
    range.ok_or(MemoryError::Plugged { memory, max })
}

impl PluggedMemory {
    /// The device for `hot` over its region of `ram`.
    pub(crate) fn new(
        memory: MemorySize,
        hot: HotMemory,
        ram: &GuestRam,
    ) -> Result<(Self, DeviceSlot), MemoryError> {
        let Range { base, len } = range(memory, &hot)?;
        let region = ram.guest_memory().find_region(GuestAddress(base));
        if region.is_none_or(|region| (region.start_addr().0, region.len()) != (base, len)) {
            return Err(MemoryError::Arrange { base });
        }
        let region = MemRegion {
            base,
            len,
            block_len: BLOCK_LEN,
        };
        let (device, control) = Mem::new(region, hot.io);
        let slot = DeviceSlot::new(SLOT, device);
        let plugged = Self {
            control,
            min: memory,
            max: hot.max,
        };
        Ok((plugged, slot))
    }

    /// Asks the guest to have `wanted` bytes in all, parts of blocks left out.
    pub(crate) fn request(&self, wanted: MemorySize) -> Result<(), MemoryPlugError> {
        if !(self.min..=self.max).contains(&wanted) {
            return Err(MemoryPlugError::OutOfBounds {
                wanted: wanted.bytes(),
                min: self.min.bytes(),
                max: self.max.bytes(),
            });
        }
        self.control.request(wanted.bytes() - self.min.bytes());
        Ok(())
    }

    /// How it stands.
    pub(crate) fn state(&self) -> MemoryState {
        let min = self.min.bytes();
        MemoryState {
            requested: min + self.control.requested(),
            present: min + self.control.plugged(),
            max: self.max.bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use podvisor_devices::event_loop::EventLoop;

    use super::*;
    use crate::memory::{MemoryBacking, RamPlan};

    const MIB: u64 = 1 << 20;

    fn size(mib: u64) -> MemorySize {
        MemorySize::from_bytes(mib * MIB).unwrap()
    }

    fn hot(max_mib: u64) -> HotMemory {
        HotMemory {
            max: size(max_mib),
            io: EventLoop::spawn("test-io", Box::new(|| Ok(()))).unwrap(),
        }
    }

    fn ram(plugged: Option<Range>) -> GuestRam {
        let mut plan = RamPlan::new(size(128), MemoryBacking::Normal);
        plan.plugged = plugged;
        GuestRam::map(&plan).unwrap()
    }

    #[test]
    fn memory_changes_within_its_bounds_in_whole_blocks() {
        let hot = hot(384);
        let ram = ram(Some(range(size(128), &hot).unwrap()));
        let (memory, _slot) = PluggedMemory::new(size(128), hot, &ram).unwrap();
        let begun = MemoryState {
            requested: 128 * MIB,
            present: 128 * MIB,
            max: 384 * MIB,
        };
        assert_eq!(memory.state(), begun);
        memory.request(size(301)).unwrap();
        assert_eq!(memory.state().requested, 300 * MIB);
        memory.request(size(384)).unwrap();
        assert_eq!(memory.state().requested, 384 * MIB);
        for wanted in [127, 385] {
            let refused = memory.request(size(wanted));
            assert!(matches!(refused, Err(MemoryPlugError::OutOfBounds { .. })));
        }
    }

    #[test]
    fn a_most_below_the_least_and_memory_without_the_region_are_refused() {
        assert!(matches!(
            range(size(128), &hot(128)),
            Err(MemoryError::Plugged { .. })
        ));
        let refused = PluggedMemory::new(size(128), hot(256), &ram(None)).map(drop);
        assert!(matches!(refused, Err(MemoryError::Arrange { .. })));
    }
}
