//! Guest memory: the one place that maps it, gives it back to the host and hands it to KVM.

mod backing;
mod mapping;

use std::io;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use podvisor_devices::GuestMemory;
use thiserror::Error;
use vm_memory::{
    GuestAddress, GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

pub use backing::MemoryBacking;

use crate::arch::layout::{self, Range};
use crate::config::MemorySize;
use crate::numa::Numa;

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
    /// Guest memory would end within a huge page.
    #[error(
        "{len} bytes of guest memory at {base:#x} are no multiple of the page size of {page_len} bytes"
    )]
    BrokenPage {
        /// First address of the range.
        base: u64,
        /// Its length in bytes.
        len: u64,
        /// Bytes of a page.
        page_len: u64,
    },
    /// The host's pool of huge pages is too small.
    #[error("{needed} huge pages of {} MiB are needed, {available} are free on this host", page_len >> 20)]
    HugePages {
        /// How many it takes.
        needed: u64,
        /// How many there are.
        available: u64,
        /// Bytes of a page.
        page_len: u64,
        /// What the host said.
        source: io::Error,
    },
    /// Memory cannot be kept on a node of the host.
    #[error("cannot keep guest memory on NUMA node {node} of this host")]
    Bind {
        /// Which node.
        node: u32,
        /// What the host said.
        source: io::Error,
    },
    /// A most that is less than what the machine begins with, or more than the memory map has
    /// room for.
    #[error("a machine with {memory} bytes of memory cannot grow to {max}")]
    Plugged {
        /// What it begins with.
        memory: u64,
        /// What it shall be able to have.
        max: u64,
    },
    /// Pages of a pool are taken at the start, all of them.
    #[error("memory from a pool of huge pages cannot grow")]
    PluggedPool,
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

/// What guest memory consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamPlan {
    /// How much of it the guest begins with.
    pub size: MemorySize,
    /// What the host keeps it in.
    pub backing: MemoryBacking,
    /// Which nodes of the host it is on; the host's choice without.
    pub numa: Option<Numa>,
    /// Where more can be plugged ([`layout::plugged_ram_range`]).
    pub plugged: Option<Range>,
}

impl RamPlan {
    /// Memory of `size` in `backing` and no particular place.
    #[must_use]
    pub fn new(size: MemorySize, backing: MemoryBacking) -> Self {
        Self {
            size,
            backing,
            numa: None,
            plugged: None,
        }
    }

    /// Keeps the parts of `range` on their nodes.
    fn bind(&self, region: &GuestRegionMmap, range: Range) -> Result<(), MemoryError> {
        let pieces = self.numa.iter().flat_map(Numa::memory);
        for piece in pieces.filter(|piece| range.contains(piece.range)) {
            if let Some(node) = piece.host_node {
                mapping::bind(region, piece.range, node)?;
            }
        }
        Ok(())
    }
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
    /// Maps what `plan` says, around the device hole. Nothing is populated, but for huge pages of
    /// a pool: the host gives pages as the guest touches them. Children of this process do not
    /// inherit it.
    ///
    /// # Errors
    /// [`MemoryError`] when the host has no address space or huge pages for it, or refuses the
    /// advice.
    pub fn map(plan: &RamPlan) -> Result<Self, MemoryError> {
        let mut mappings = Mappings {
            regions: Vec::new(),
        };
        if plan.plugged.is_some() && plan.backing.pool().is_some() {
            return Err(MemoryError::PluggedPool);
        }
        let ranges = layout::ram_ranges(plan.size.bytes());
        for range in ranges.into_iter().chain(plan.plugged) {
            let mapping = mapping::map(range, plan.backing)?;
            let region = GuestRegionMmap::new(mapping, GuestAddress(range.base));
            let region = Arc::new(region.ok_or(MemoryError::Arrange { base: range.base })?);
            mappings.regions.push(Arc::clone(&region));
            plan.bind(&region, range)?;
            mapping::advise_all(&region, plan.backing)?;
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

    /// Makes all memory zeros, and gives it back to the host until it is touched again, but for
    /// huge pages of a pool.
    ///
    /// # Errors
    /// [`MemoryError::Advise`] when the host keeps it.
    pub(crate) fn clear(&self) -> Result<(), MemoryError> {
        self.memory.iter().try_for_each(mapping::clear)
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

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    fn ram(bytes: u64) -> GuestRam {
        let size = MemorySize::from_bytes(bytes).unwrap();
        GuestRam::map(&RamPlan::new(size, MemoryBacking::TransparentHugePages)).unwrap()
    }

    #[test]
    fn mapping_is_aligned_to_huge_pages() {
        for bytes in [64 << 20, (64 << 20) + 4096] {
            let ram = ram(bytes);
            let host = ram
                .guest_memory()
                .get_host_address(GuestAddress(0))
                .unwrap();
            assert_eq!(host as usize % mapping::ALIGNMENT, 0);
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
    fn cleared_memory_reads_as_zeros() {
        let ram = ram(64 << 20);
        let memory = ram.guest_memory();
        for address in [0, 0x1000, (64 << 20) - 1] {
            memory.write_obj(7_u8, GuestAddress(address)).unwrap();
        }
        ram.clear().unwrap();
        for address in [0, 0x1000, (64 << 20) - 1] {
            assert_eq!(memory.read_obj::<u8>(GuestAddress(address)).unwrap(), 0);
        }
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

    #[test]
    fn a_pool_without_pages_says_how_many_are_free_and_needed() {
        let size = MemorySize::from_bytes(380 << 30).unwrap();
        let error = GuestRam::map(&RamPlan::new(size, MemoryBacking::HugePages1Gi)).map(drop);
        let text = error.unwrap_err().to_string();
        assert!(text.contains("huge pages of 1024 MiB are needed"), "{text}");
    }

    #[test]
    fn memory_with_a_broken_huge_page_is_refused() {
        let size = MemorySize::from_bytes((64 << 20) + 4096).unwrap();
        let error = GuestRam::map(&RamPlan::new(size, MemoryBacking::HugePages2Mi)).map(drop);
        assert!(matches!(
            error,
            Err(MemoryError::BrokenPage {
                page_len: 0x20_0000,
                ..
            })
        ));
    }
}
