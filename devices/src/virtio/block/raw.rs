//! A raw disk image or block device as a disk's data: every byte lies where the guest says.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::RawFd;

use super::backend::{Completion, DiskBackend, DiskOperation};
use super::transfer::{CacheMode, FileId, Transfers};

/// The only file of a raw disk.
const FILE: FileId = FileId(0);

/// The length of a file or block device in bytes.
///
/// # Errors
/// Those of lseek(2).
pub fn len_of(mut file: &File) -> io::Result<u64> {
    // For block devices the metadata have no length; seeking finds it for both.
    file.seek(SeekFrom::End(0))
}

/// The disk.
pub struct RawDisk {
    transfers: Box<dyn Transfers>,
    len: u64,
    heeds_flushes: bool,
    flushed: Vec<Completion>,
}

impl RawDisk {
    /// The disk of `len` bytes in the first file of `transfers`.
    #[must_use]
    pub fn new(transfers: Box<dyn Transfers>, len: u64, cache: CacheMode) -> Self {
        Self {
            transfers,
            len,
            heeds_flushes: cache != CacheMode::Unsafe,
            flushed: Vec::new(),
        }
    }
}

impl DiskBackend for RawDisk {
    fn disk_len(&self) -> u64 {
        self.len
    }

    fn max_in_flight(&self) -> usize {
        self.transfers.capacity()
    }

    fn event(&self) -> RawFd {
        self.transfers.event()
    }

    fn start(&mut self, tag: usize, operation: DiskOperation) {
        if !self.heeds_flushes && matches!(operation, DiskOperation::Flush) {
            self.flushed.push(Completion {
                tag,
                result: Ok(()),
            });
            self.transfers.wake();
            return;
        }
        self.transfers.start(tag, FILE, operation);
    }

    fn submit(&mut self) {
        self.transfers.submit();
    }

    fn take_completions(&mut self, finished: &mut Vec<Completion>) {
        self.transfers.take_completions(finished);
        finished.append(&mut self.flushed);
    }

    fn wait(&mut self) -> io::Result<()> {
        if self.flushed.is_empty() {
            self.transfers.wait()
        } else {
            Ok(())
        }
    }
}
