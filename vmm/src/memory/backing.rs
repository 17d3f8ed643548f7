//! What the host keeps guest memory in.

use std::fs;
use std::path::{Path, PathBuf};

use libc::c_int;

const MIB: u64 = 1 << 20;

/// What the host keeps guest memory in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryBacking {
    /// Pages as the host's own settings have them.
    #[default]
    Normal,
    /// Huge pages where the host finds some: fewer faults and a faster guest for memory that is
    /// handed out 2 MiB at a time.
    TransparentHugePages,
    /// Pages of 2 MiB from the host's pool. All are taken at the start; nothing goes back before
    /// the machine's end.
    HugePages2Mi,
    /// Pages of 1 GiB, likewise.
    HugePages1Gi,
}

/// Pages that the host keeps in a pool of their own (hugetlb).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pool {
    /// Bytes of a page.
    pub(super) page_len: u64,
    /// What asks mmap(2) for them.
    pub(super) map_flags: c_int,
}

impl MemoryBacking {
    /// Guest memory, and each node's part of it, is a multiple of this many bytes.
    #[must_use]
    pub fn page_len(self) -> u64 {
        match self.pool() {
            Some(pool) => pool.page_len,
            None => crate::arch::layout::PAGE_SIZE,
        }
    }

    /// Whether it comes out of a pool of huge pages.
    #[must_use]
    pub fn is_pool(self) -> bool {
        self.pool().is_some()
    }

    pub(super) fn pool(self) -> Option<Pool> {
        match self {
            Self::Normal | Self::TransparentHugePages => None,
            Self::HugePages2Mi => Some(Pool {
                page_len: 2 * MIB,
                map_flags: libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
            }),
            Self::HugePages1Gi => Some(Pool {
                page_len: 1024 * MIB,
                map_flags: libc::MAP_HUGETLB | libc::MAP_HUGE_1GB,
            }),
        }
    }
}

impl Pool {
    /// How many pages of `len` bytes it takes.
    pub(super) fn pages(self, len: u64) -> u64 {
        len / self.page_len
    }

    /// How many pages nobody uses or has been promised; none on a host without such pages.
    pub(super) fn available(self) -> u64 {
        self.available_in(Path::new("/sys/kernel/mm/hugepages"))
    }

    fn available_in(self, folder: &Path) -> u64 {
        let folder: PathBuf = folder.join(format!("hugepages-{}kB", self.page_len >> 10));
        let count = |name: &str| {
            let text = fs::read_to_string(folder.join(name)).unwrap_or_default();
            text.trim().parse::<u64>().unwrap_or_default()
        };
        count("free_hugepages").saturating_sub(count("resv_hugepages"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promised_pages_are_not_available() {
        let folder = tempfile::tempdir().unwrap();
        let pool = MemoryBacking::HugePages2Mi.pool().unwrap();
        assert_eq!(pool.available_in(folder.path()), 0, "no such pages");
        let pages = folder.path().join("hugepages-2048kB");
        fs::create_dir(&pages).unwrap();
        fs::write(pages.join("free_hugepages"), "7\n").unwrap();
        fs::write(pages.join("resv_hugepages"), "3\n").unwrap();
        assert_eq!(pool.available_in(folder.path()), 4);
    }

    #[test]
    fn the_flags_carry_the_page_size() {
        for backing in [MemoryBacking::HugePages2Mi, MemoryBacking::HugePages1Gi] {
            let pool = backing.pool().unwrap();
            let shift = pool.map_flags.cast_unsigned() >> libc::MAP_HUGE_SHIFT;
            assert_eq!(1_u64 << shift, pool.page_len);
        }
    }
}
