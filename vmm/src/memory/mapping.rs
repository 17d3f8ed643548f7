//! Mappings of this process that become guest memory.

use std::io;

use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes as _, GuestMemoryRegion as _, GuestRegionMmap, MemoryRegionAddress};

use super::MemoryError;
use super::backing::{MemoryBacking, Pool};
use crate::arch::layout::Range;

/// Alignment of every mapping: KVM maps a huge page only when guest and host address agree
/// within it.
pub(super) const ALIGNMENT: usize = 2 << 20;

/// As many as Linux can be built for (`NODES_SHIFT` 10).
const MAX_HOST_NODES: usize = 1024;
const WORD_BITS: usize = u64::BITS as usize;

const PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: i32 = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE;

/// Maps memory for `range`. Whoever gets the region owns the mapping.
pub(super) fn map(range: Range, backing: MemoryBacking) -> Result<MmapRegion, MemoryError> {
    let arrange = || MemoryError::Arrange { base: range.base };
    let len = usize::try_from(range.len).map_err(|_| arrange())?;
    match backing.pool() {
        Some(pool) => map_pool(pool, range, len),
        None => map_aligned(len),
    }
}

/// Maps huge pages of the host's pool, which promises them all or none.
fn map_pool(pool: Pool, range: Range, len: usize) -> Result<MmapRegion, MemoryError> {
    let page_len = pool.page_len;
    if !range.len.is_multiple_of(page_len) {
        let Range { base, len } = range;
        return Err(MemoryError::BrokenPage {
            base,
            len,
            page_len,
        });
    }
    let flags = FLAGS | pool.map_flags;
    // SAFETY: A new private mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), len, PROTECTION, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(no_pages(pool, range.len, io::Error::last_os_error()));
    }
    // SAFETY: `start` is the start of `len` bytes mapped above.
    let mapping = unsafe { MmapRegion::build_raw(start.cast(), len, PROTECTION, flags) };
    mapping.map_err(|_| MemoryError::Arrange { base: range.base })
}

fn no_pages(pool: Pool, len: u64, source: io::Error) -> MemoryError {
    MemoryError::HugePages {
        needed: pool.pages(len),
        available: pool.available(),
        page_len: pool.page_len,
        source,
    }
}

/// Maps `len` bytes at an address aligned to huge pages. Newer kernels align large mappings by
/// themselves; others, and lengths with a broken huge page, need a larger one that is cut.
fn map_aligned(len: usize) -> Result<MmapRegion, MemoryError> {
    let failed = |source| MemoryError::Map { len, source };
    let flags = FLAGS | libc::MAP_NORESERVE;
    let padded = len
        .checked_add(ALIGNMENT)
        .ok_or_else(|| failed(io::ErrorKind::OutOfMemory.into()))?;
    // SAFETY: A new private mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), padded, PROTECTION, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(failed(io::Error::last_os_error()));
    }
    let start = start.cast::<u8>();
    let before = start.align_offset(ALIGNMENT).min(ALIGNMENT);
    let region = start.wrapping_add(before);
    unmap(start, before);
    unmap(region.wrapping_add(len), ALIGNMENT - before);
    // SAFETY: `region` is the start of `len` bytes mapped above.
    let mapping = unsafe { MmapRegion::build_raw(region, len, PROTECTION, flags) };
    mapping.map_err(|_| failed(io::ErrorKind::InvalidInput.into()))
}

/// Keeps `range` of `region`, where nothing has been touched yet, on a node of the host.
pub(super) fn bind(region: &GuestRegionMmap, range: Range, node: u32) -> Result<(), MemoryError> {
    let failed = |source| MemoryError::Bind { node, source };
    let no_node = || failed(io::Error::from_raw_os_error(libc::EINVAL));
    let offset = range.base - region.start_addr().0;
    let offset = usize::try_from(offset).map_err(|_| no_node())?;
    let address = region.as_ptr().wrapping_add(offset);
    let mut mask = [0_u64; MAX_HOST_NODES / WORD_BITS];
    let bit = usize::try_from(node).map_err(|_| no_node())?;
    let word = mask.get_mut(bit / WORD_BITS).ok_or_else(no_node)?;
    *word |= 1 << (bit % WORD_BITS);
    // The kernel takes one bit less than it is told of.
    let bits = MAX_HOST_NODES + 1;
    // SAFETY: The range is part of a live mapping of ours (the caller cuts it to the region), and
    // the mask has as many bits as the kernel reads.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            address,
            range.len,
            libc::MPOL_BIND,
            mask.as_ptr(),
            bits,
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(failed(io::Error::last_os_error()))
    }
}

/// Cuts a part off a mapping that nobody else knows yet.
fn unmap(start: *mut u8, len: usize) {
    if len > 0 {
        // SAFETY: The range is page-aligned and lies in the mapping that the caller just made.
        unsafe { libc::munmap(start.cast(), len) };
    }
}

/// Tells the host how `region` is used, and takes the pages that have to be there.
pub(super) fn advise_all(
    region: &GuestRegionMmap,
    backing: MemoryBacking,
) -> Result<(), MemoryError> {
    advise(region, libc::MADV_DONTFORK, "MADV_DONTFORK")?;
    match backing {
        MemoryBacking::Normal => Ok(()),
        MemoryBacking::TransparentHugePages => {
            // A host built without huge pages has nothing to give, which is no error.
            unless_unknown(advise(region, libc::MADV_HUGEPAGE, "MADV_HUGEPAGE"))
        }
        MemoryBacking::HugePages2Mi | MemoryBacking::HugePages1Gi => populate(region, backing),
    }
}

/// Takes all pages at once: a page that the pod's cgroup or memory policy does not allow is a
/// refusal here, and a deadly signal when a guest touches it.
fn populate(region: &GuestRegionMmap, backing: MemoryBacking) -> Result<(), MemoryError> {
    let populated = advise(region, libc::MADV_POPULATE_WRITE, "MADV_POPULATE_WRITE");
    match (unless_unknown(populated), backing.pool()) {
        (Err(MemoryError::Advise { source, .. }), Some(pool)) => {
            Err(no_pages(pool, region.len(), source))
        }
        (result, _) => result,
    }
}

/// Advice that an older kernel does not know is not taken, which is no error.
fn unless_unknown(advised: Result<(), MemoryError>) -> Result<(), MemoryError> {
    match advised {
        Err(MemoryError::Advise { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
            Ok(())
        }
        other => other,
    }
}

/// Makes a region's memory zeros.
pub(super) fn clear(region: &GuestRegionMmap) -> Result<(), MemoryError> {
    if region.flags() & libc::MAP_HUGETLB == 0 {
        return advise(region, libc::MADV_DONTNEED, "MADV_DONTNEED");
    }
    // Pages of a pool are kept: somebody else could take them, and the guest die of it.
    let zeros = vec![0; ALIGNMENT];
    for offset in (0..region.len()).step_by(ALIGNMENT) {
        let base = region.start_addr().0;
        region
            .write_slice(&zeros, MemoryRegionAddress(offset))
            .map_err(|_| MemoryError::Arrange { base })?;
    }
    Ok(())
}

fn advise(region: &GuestRegionMmap, advice: i32, name: &'static str) -> Result<(), MemoryError> {
    // SAFETY: The range is exactly one live mapping of ours, private and anonymous: pages that are
    // given back read as zeros, and no other advice given here changes its content. No Rust
    // reference ever points into guest memory.
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
