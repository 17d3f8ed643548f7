//! A file of a disk, and how the host caches it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, fcntl_getfl, open, statx};

use crate::virtio::block::backend::DiskOperation;

/// Whether the host's page cache stands between a disk and its file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// It does; the guest's flushes reach the file.
    #[default]
    Writeback,
    /// It does, and every write reaches the medium before it ends.
    Writethrough,
    /// Direct I/O. Requests that direct I/O cannot do, because they are not aligned as the file
    /// system wants, go through the page cache.
    None,
    /// It does, and the guest's flushes are not heeded: a crash of the host loses data that the
    /// guest believes to be safe. For disks that may be lost.
    Unsafe,
}

/// What direct I/O is done through where the file system does not say what it wants.
const USUAL_ALIGN: u32 = 4096;

/// The same file once more, opened for direct I/O.
struct Direct {
    file: File,
    memory_align: usize,
    offset_align: u64,
}

/// A file that a disk's data lies in, or a part of them.
pub struct DiskFile {
    file: File,
    direct: Option<Direct>,
}

impl DiskFile {
    /// The file as it is to be used with `cache`.
    ///
    /// # Errors
    /// `Unsupported` when direct I/O is asked for and the file system has none, and what the host
    /// says when the file cannot be opened again.
    pub fn new(file: File, cache: CacheMode) -> io::Result<Self> {
        let direct = match cache {
            CacheMode::Writeback | CacheMode::Writethrough | CacheMode::Unsafe => None,
            CacheMode::None => Some(Direct::of(&file)?),
        };
        Ok(Self { file, direct })
    }

    /// Whether the host opens `file` for direct I/O.
    pub fn has_direct_io(file: &File) -> bool {
        Direct::of(file).is_ok()
    }

    /// What to do `operation` on. Pages of the one way and direct I/O of the other do not
    /// contradict each other: the kernel writes them back, or drops them, first.
    pub(super) fn descriptor(&self, operation: &DiskOperation) -> RawFd {
        let direct = self.direct.as_ref().filter(|direct| match operation {
            DiskOperation::Read { offset, buffers } | DiskOperation::Write { offset, buffers } => {
                direct.takes(*offset, buffers)
            }
            _ => false,
        });
        direct.map_or(&self.file, |direct| &direct.file).as_raw_fd()
    }
}

impl Direct {
    fn of(file: &File) -> io::Result<Self> {
        let unsupported = |_| {
            let text = "the file system has no direct I/O, which cache mode none needs";
            io::Error::new(io::ErrorKind::Unsupported, text)
        };
        let status = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
        let tells = StatxFlags::from_bits_retain(status.stx_mask).contains(StatxFlags::DIOALIGN);
        let (memory, offset) = match tells {
            true => (status.stx_dio_mem_align, status.stx_dio_offset_align),
            false => (USUAL_ALIGN, USUAL_ALIGN),
        };
        if memory == 0 || offset == 0 {
            return Err(unsupported(()));
        }
        let access = fcntl_getfl(file)? & OFlags::RWMODE;
        let again = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = access | OFlags::DIRECT | OFlags::CLOEXEC;
        let opened = open(again, flags, Mode::empty());
        let file = opened.map_err(|error| match error {
            rustix::io::Errno::INVAL => unsupported(()),
            other => other.into(),
        })?;
        Ok(Self {
            file: file.into(),
            memory_align: usize::try_from(memory).unwrap_or(usize::MAX),
            offset_align: offset.into(),
        })
    }

    fn takes(&self, offset: u64, buffers: &crate::virtio::block::backend::Iovecs) -> bool {
        offset.is_multiple_of(self.offset_align)
            && buffers.len().is_multiple_of(self.offset_align)
            && buffers.is_aligned(self.memory_align)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::block::backend::Iovecs;

    #[test]
    fn only_aligned_operations_are_direct() {
        let direct = Direct {
            file: tempfile::tempfile().unwrap(),
            memory_align: 4096,
            offset_align: 512,
        };
        let number = direct.file.as_raw_fd();
        let file = DiskFile {
            file: tempfile::tempfile().unwrap(),
            direct: Some(direct),
        };
        let is_direct =
            |offset, buffers| file.descriptor(&DiskOperation::Read { offset, buffers }) == number;
        assert!(is_direct(512, Iovecs::zeros(4096)));
        assert!(!is_direct(100, Iovecs::zeros(4096)));
        assert!(!is_direct(512, Iovecs::zeros(600)));
        assert!(!is_direct(512, Iovecs::zeros(8192).part(512, 4096)));
        assert_ne!(file.descriptor(&DiskOperation::Flush), number);
    }

    #[test]
    fn a_file_without_direct_io_is_refused_by_name() {
        // An anonymous file in memory: either the kernel says that it has none, or it takes the
        // flag and means it.
        let file = File::open("/proc/self/status").unwrap();
        assert!(!DiskFile::has_direct_io(&file));
        let error = DiskFile::new(file, CacheMode::None).err().unwrap();
        assert!(error.to_string().contains("cache mode none"), "{error}");
    }
}
