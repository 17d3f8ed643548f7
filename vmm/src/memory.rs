//! Guest memory: the one place that maps it, gives it back to the host and hands it to KVM.

use std::io;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use podvisor_devices::GuestMemory;
use thiserror::Error;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    GuestAddress, GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::arch::layout;
use crate::config::MemorySize;

/// Size and alignment of a huge page. KVM maps one only when guest and host address agree
/// within it.
const HUGE_PAGE: usize = 2 << 20;

/// How often to look for a place that is aligned to huge pages.
const ALIGN_ATTEMPTS: usize = 4;

/// Why guest memory could not be set up.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host's address space has no room.
    #[error("cannot map {len} bytes of guest memory")]
    Map {
        /// Size of the mapping in bytes.
        len: u64,
        /// What the host said.
        source: MmapRegionError,
    },
    /// The kernel refused advice about the mapping.
    #[error("cannot set {advice} on guest memory")]
    Advise {
        /// Which advice.
        advice: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// The ranges do not form a guest memory; a defect of the memory map.
    #[error("guest memory at {base:#x} does not fit")]
    Arrange {
        /// First address of the range.
        base: u64,
    },
    /// KVM refused the memory.
    #[error("KVM refuses guest memory at {base:#x}")]
    Slot {
        /// First address of the range.
        base: u64,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
}

/// The guest's RAM: anonymous private memory of this process, mapped once for the machine's
/// whole life.
#[derive(Clone)]
pub struct GuestRam {
    memory: GuestMemory,
}

impl GuestRam {
    /// Maps `size` bytes around the device hole. Nothing is populated: the host gives pages as
    /// the guest touches them. Children of this process do not inherit it.
    ///
    /// # Errors
    /// [`MemoryError`] when the host has no address space for it or refuses the advice.
    pub fn map(size: MemorySize, transparent_huge_pages: bool) -> Result<Self, MemoryError> {
        let mut regions = Vec::new();
        for range in layout::ram_ranges(size.bytes()) {
            let map = |source| MemoryError::Map { len: range.len, source };
            let len = usize::try_from(range.len).map_err(|_| MemoryError::Arrange { base: range.base })?;
            let mapping = map_aligned(len).map_err(map)?;
            advise(&mapping, libc::MADV_DONTFORK, "MADV_DONTFORK")?;
            if transparent_huge_pages {
                advise_huge(&mapping)?;
            }
            let region = GuestRegionMmap::new(mapping, GuestAddress(range.base));
            regions.push(region.ok_or(MemoryError::Arrange { base: range.base })?);
        }
        let memory = GuestMemoryMmap::from_regions(regions)
            .map_err(|_| MemoryError::Arrange { base: 0 })?;
        Ok(Self { memory: Arc::new(memory) })
    }

    /// The memory as devices see it.
    #[must_use]
    pub fn guest_memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Gives every range to KVM as a slot of `vm`.
    pub(crate) fn register(&self, vm: &VmFd) -> Result<(), MemoryError> {
        for (slot, region) in (0..).zip(self.memory.iter()) {
            let base = region.start_addr().0;
            let kvm_region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: base,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: The region is memory of this process. Whoever holds `vm` holds `self` as
            // long (`Machine` owns both and closes the VM first), so that the mapping outlives
            // KVM's use of it.
            unsafe { vm.set_user_memory_region(kvm_region) }
                .map_err(|source| MemoryError::Slot { base, source })?;
        }
        Ok(())
    }
}

/// Maps `len` bytes at an address aligned to huge pages where that can be had. Newer kernels
/// align by themselves; on older ones a pad above the mapping shifts it.
fn map_aligned(len: usize) -> Result<MmapRegion, MmapRegionError> {
    let mut mapping = map_anonymous(len)?;
    for _ in 0..ALIGN_ATTEMPTS {
        let surplus = mapping.as_ptr() as usize % HUGE_PAGE;
        if surplus == 0 || len < HUGE_PAGE {
            break;
        }
        drop(mapping);
        let _pad = map_anonymous(surplus)?;
        mapping = map_anonymous(len)?;
    }
    Ok(mapping)
}

fn map_anonymous(len: usize) -> Result<MmapRegion, MmapRegionError> {
    MmapRegionBuilder::new(len)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE)
        .build()
}

/// Asks for huge pages; a host built without them has nothing to give, which is no error.
fn advise_huge(mapping: &MmapRegion) -> Result<(), MemoryError> {
    match advise(mapping, libc::MADV_HUGEPAGE, "MADV_HUGEPAGE") {
        Err(MemoryError::Advise { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => other,
    }
}

fn advise(mapping: &MmapRegion, advice: i32, name: &'static str) -> Result<(), MemoryError> {
    // SAFETY: The range is exactly one live mapping of ours; neither advice changes its content.
    let result = unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), advice) };
    if result == 0 {
        Ok(())
    } else {
        Err(MemoryError::Advise { advice: name, source: io::Error::last_os_error() })
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    fn ram(bytes: u64) -> GuestRam {
        GuestRam::map(MemorySize::from_bytes(bytes).unwrap(), true).unwrap()
    }

    #[test]
    fn mapping_is_aligned_to_huge_pages() {
        for bytes in [64 << 20, (64 << 20) + 4096] {
            let ram = ram(bytes);
            let host = ram.guest_memory().get_host_address(GuestAddress(0)).unwrap();
            assert_eq!(host as usize % HUGE_PAGE, 0);
        }
    }

    #[test]
    fn memory_beyond_the_hole_is_reachable_above_four_gib() {
        let ram = ram(8 << 30);
        let memory = ram.guest_memory();
        let last = GuestAddress(layout::HIGH_RAM + (5 << 30) - 8);
        memory.write_obj(0x0123_4567_89ab_cdef_u64, last).unwrap();
        assert_eq!(memory.read_obj::<u64>(last).unwrap(), 0x0123_4567_89ab_cdef);
        assert!(memory.read_obj::<u8>(GuestAddress(layout::LOW_RAM_END)).is_err());
        assert!(memory.read_obj::<u8>(GuestAddress(layout::HIGH_RAM + (5 << 30))).is_err());
    }
}
