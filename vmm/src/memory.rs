//! Guest memory: the one place that maps it, gives it back to the host and hands it to KVM.

use std::io;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use podvisor_devices::GuestMemory;
use thiserror::Error;
use vm_memory::mmap::MmapRegion;
use vm_memory::{
    GuestAddress, GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::arch::layout;
use crate::config::MemorySize;

/// Size and alignment of a huge page. KVM maps one only when guest and host address agree
/// within it.
const HUGE_PAGE: usize = 2 << 20;

/// Why guest memory could not be set up.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host's address space has no room.
    #[error("cannot map {len} bytes of guest memory")]
    Map {
        /// Size of the mapping in bytes.
        len: usize,
        /// What the host said.
        source: io::Error,
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
    // After `memory`: fields drop in order.
    _mappings: Arc<Mappings>,
}

/// The host mappings behind guest memory.
struct Mappings {
    regions: Vec<Arc<GuestRegionMmap>>,
}

impl Drop for Mappings {
    fn drop(&mut self) {
        for region in self.regions.drain(..) {
            let (address, len) = (region.as_ptr(), region.size());
            if Arc::into_inner(region).is_none() {
                // Somebody kept the memory beyond the machine's life: it stays mapped for them.
                tracing::error!(len, "guest memory is still in use and is not unmapped");
                continue;
            }
            // SAFETY: `map_aligned` made this mapping for this region alone, and with the
            // region's last reference went the last way to its memory.
            unsafe { libc::munmap(address.cast(), len) };
        }
    }
}

impl GuestRam {
    /// Maps `size` bytes around the device hole. Nothing is populated: the host gives pages as
    /// the guest touches them. Children of this process do not inherit it.
    ///
    /// # Errors
    /// [`MemoryError`] when the host has no address space for it or refuses the advice.
    pub fn map(size: MemorySize, transparent_huge_pages: bool) -> Result<Self, MemoryError> {
        let mut mappings = Mappings {
            regions: Vec::new(),
        };
        for range in layout::ram_ranges(size.bytes()) {
            let arrange = || MemoryError::Arrange { base: range.base };
            let len = usize::try_from(range.len).map_err(|_| arrange())?;
            let mapping = map_aligned(len)?;
            let region = GuestRegionMmap::new(mapping, GuestAddress(range.base));
            let region = Arc::new(region.ok_or_else(arrange)?);
            mappings.regions.push(Arc::clone(&region));
            advise(&region, libc::MADV_DONTFORK, "MADV_DONTFORK")?;
            if transparent_huge_pages {
                advise_huge(&region)?;
            }
        }
        let memory = GuestMemoryMmap::from_arc_regions(mappings.regions.clone())
            .map_err(|_| MemoryError::Arrange { base: 0 })?;
        Ok(Self {
            memory: Arc::new(memory),
            _mappings: Arc::new(mappings),
        })
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

const PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: i32 = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE;

/// Maps `len` bytes at an address aligned to huge pages. Newer kernels align large mappings by
/// themselves; others, and lengths with a broken huge page, need a larger one that is cut.
fn map_aligned(len: usize) -> Result<MmapRegion, MemoryError> {
    let failed = |source| MemoryError::Map { len, source };
    let padded = len
        .checked_add(HUGE_PAGE)
        .ok_or_else(|| failed(io::ErrorKind::OutOfMemory.into()))?;
    // SAFETY: A new private mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), padded, PROTECTION, FLAGS, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(failed(io::Error::last_os_error()));
    }
    let start = start.cast::<u8>();
    let before = start.align_offset(HUGE_PAGE).min(HUGE_PAGE);
    let region = start.wrapping_add(before);
    unmap(start, before);
    unmap(region.wrapping_add(len), HUGE_PAGE - before);
    // SAFETY: `region` is the start of `len` bytes mapped above; whoever gets the region owns
    // them (`Mappings` unmaps).
    let mapping = unsafe { MmapRegion::build_raw(region, len, PROTECTION, FLAGS) };
    mapping.map_err(|_| failed(io::ErrorKind::InvalidInput.into()))
}

/// Cuts a part off a mapping that nobody else knows yet.
fn unmap(start: *mut u8, len: usize) {
    if len > 0 {
        // SAFETY: The range is page-aligned and lies in the mapping that the caller just made.
        unsafe { libc::munmap(start.cast(), len) };
    }
}

/// Asks for huge pages; a host built without them has nothing to give, which is no error.
fn advise_huge(region: &GuestRegionMmap) -> Result<(), MemoryError> {
    match advise(region, libc::MADV_HUGEPAGE, "MADV_HUGEPAGE") {
        Err(MemoryError::Advise { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
            Ok(())
        }
        other => other,
    }
}

fn advise(region: &GuestRegionMmap, advice: i32, name: &'static str) -> Result<(), MemoryError> {
    // SAFETY: The range is exactly one live mapping of ours; neither advice changes its content.
    let result = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), advice) };
    if result == 0 {
        Ok(())
    } else {
        Err(MemoryError::Advise {
            advice: name,
            source: io::Error::last_os_error(),
        })
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
            let host = ram
                .guest_memory()
                .get_host_address(GuestAddress(0))
                .unwrap();
            assert_eq!(host as usize % HUGE_PAGE, 0);
        }
    }

    #[test]
    fn memory_is_unmapped_with_its_last_user() {
        let ram = ram(64 << 20);
        let memory = ram.guest_memory().clone();
        drop(ram);
        memory.write_obj(7_u8, GuestAddress(0)).unwrap();
    }

    #[test]
    fn memory_beyond_the_hole_is_reachable_above_four_gib() {
        let ram = ram(8 << 30);
        let memory = ram.guest_memory();
        let last = GuestAddress(layout::HIGH_RAM + (5 << 30) - 8);
        memory.write_obj(0x0123_4567_89ab_cdef_u64, last).unwrap();
        assert_eq!(memory.read_obj::<u64>(last).unwrap(), 0x0123_4567_89ab_cdef);
        assert!(
            memory
                .read_obj::<u8>(GuestAddress(layout::LOW_RAM_END))
                .is_err()
        );
        assert!(
            memory
                .read_obj::<u8>(GuestAddress(layout::HIGH_RAM + (5 << 30)))
                .is_err()
        );
    }
}
