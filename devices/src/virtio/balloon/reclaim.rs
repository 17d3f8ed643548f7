//! Gives pages of guest memory back to the host.

use std::io;

use vm_memory::{GuestAddress, GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion as _};

use crate::virtio::chain::GuestRange;

/// Gives the whole host pages of `range` back; the guest reads zeros there from now on.
/// Returns how many bytes that were.
///
/// # Errors
/// `InvalidInput` when the range is not in guest memory, `Unsupported` when that memory is
/// not private and anonymous (giving back a file's pages would not free them), or what
/// `madvise` answers.
pub fn reclaim(memory: &GuestMemoryMmap<()>, range: GuestRange) -> io::Result<u64> {
    let page_len = page_len();
    let start = range.address.0.checked_next_multiple_of(page_len);
    let end = range.address.0.checked_add(range.len as u64);
    let (Some(mut at), Some(end)) = (start, end.map(|end| end - end % page_len)) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut done = 0;
    while at < end {
        let address = GuestAddress(at);
        let region = memory
            .find_region(address)
            .ok_or(io::ErrorKind::InvalidInput)?;
        if !is_private_anonymous(region.flags()) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // A range may lie across regions, which need not be neighbours on the host.
        let region_end = region.start_addr().0 + region.len();
        let len = end.min(region_end) - at;
        let host = memory.get_host_address(address).map_err(io::Error::other)?;
        let count = usize::try_from(len).map_err(io::Error::other)?;
        // SAFETY: `host..host + count` lies in one mapping of guest memory, which lives as
        // long as `memory`. It is private and anonymous: its pages read as zeros afterwards.
        // No Rust reference ever points into guest memory.
        let outcome = unsafe { libc::madvise(host.cast(), count, libc::MADV_DONTNEED) };
        if outcome != 0 {
            return Err(io::Error::last_os_error());
        }
        done += len;
        at += len;
    }
    Ok(done)
}

fn is_private_anonymous(flags: i32) -> bool {
    let wanted = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // A huge page of a pool does not go back in parts.
    flags & (wanted | libc::MAP_HUGETLB) == wanted
}

fn page_len() -> u64 {
    // SAFETY: the call has no preconditions.
    let len = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(len).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes as _;

    use super::*;

    fn memory() -> GuestMemoryMmap<()> {
        let ranges = [(GuestAddress(0), 0x4000), (GuestAddress(0x4000), 0x4000)];
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        memory.write_slice(&[7; 0x8000], GuestAddress(0)).unwrap();
        memory
    }

    fn range(address: u64, len: usize) -> GuestRange {
        GuestRange {
            address: GuestAddress(address),
            len,
        }
    }

    fn byte(memory: &GuestMemoryMmap<()>, address: u64) -> u8 {
        memory.read_obj(GuestAddress(address)).unwrap()
    }

    #[test]
    fn whole_pages_read_as_zeros_and_their_neighbours_stay() {
        let memory = memory();
        assert_eq!(reclaim(&memory, range(0x0fff, 0x2002)).unwrap(), 0x2000);
        for (address, expected) in [(0xfff, 7), (0x1000, 0), (0x2fff, 0), (0x3000, 7)] {
            assert_eq!(byte(&memory, address), expected, "{address:#x}");
        }
    }

    #[test]
    fn a_range_may_lie_across_regions() {
        let memory = memory();
        assert_eq!(reclaim(&memory, range(0x3000, 0x2000)).unwrap(), 0x2000);
        assert_eq!(
            (
                byte(&memory, 0x3000),
                byte(&memory, 0x4fff),
                byte(&memory, 0x5000)
            ),
            (0, 0, 7)
        );
    }

    #[test]
    fn parts_of_a_page_and_ranges_outside_of_memory_give_nothing_back() {
        let memory = memory();
        assert_eq!(reclaim(&memory, range(0x1001, 0xffe)).unwrap(), 0);
        assert_eq!(byte(&memory, 0x1800), 7);
        assert!(reclaim(&memory, range(0x7000, 0x2000)).is_err());
        assert!(reclaim(&memory, range(u64::MAX - 5, 0x1000)).is_err());
    }

    #[test]
    fn shared_memory_and_huge_pages_of_a_pool_are_left_alone() {
        let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        assert!(!is_private_anonymous(shared));
        let pool = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
        assert!(!is_private_anonymous(pool));
        assert!(is_private_anonymous(
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE
        ));
    }
}
