//! Plain system calls, one after the other, on the disk's own thread.

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};

use vmm_sys_util::eventfd::EventFd;

use super::{DiskFile, FileId, Step, Transfers, advance, fallocate_of};
use crate::virtio::block::backend::{Completion, DiskOperation};

/// Does each operation at once.
pub struct PlainTransfers {
    files: Vec<DiskFile>,
    event: EventFd,
    finished: Vec<Completion>,
}

impl PlainTransfers {
    /// Transfers with `files`.
    ///
    /// # Errors
    /// When the host has no event file left.
    pub fn new(files: Vec<DiskFile>) -> io::Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self {
            files,
            event,
            finished: Vec::new(),
        })
    }

    fn perform(&self, file: FileId, mut operation: DiskOperation) -> io::Result<()> {
        let file = self.files.get(file.0).ok_or(io::ErrorKind::NotFound)?;
        loop {
            let answer = call(file.descriptor(&operation), &operation)?;
            match advance(&mut operation, answer) {
                Step::Done(result) => return result,
                Step::Again => {}
            }
        }
    }
}

/// One system call for `operation`, answering as the kernel does.
fn call(fd: RawFd, operation: &DiskOperation) -> io::Result<i64> {
    let to_offset = |value: u64| libc::off64_t::try_from(value).map_err(io::Error::other);
    let answer = match operation {
        DiskOperation::Read { offset, buffers } => {
            let (left, count) = (buffers.left(), vector_count(buffers.left())?);
            // SAFETY: the vectors point into memory that `buffers` keeps mapped.
            unsafe { libc::preadv64(fd, left.as_ptr(), count, to_offset(*offset)?) as i64 }
        }
        DiskOperation::Write { offset, buffers } => {
            let (left, count) = (buffers.left(), vector_count(buffers.left())?);
            // SAFETY: as above; the kernel only reads them.
            unsafe { libc::pwritev64(fd, left.as_ptr(), count, to_offset(*offset)?) as i64 }
        }
        DiskOperation::Flush => {
            // SAFETY: the call takes a descriptor only.
            i64::from(unsafe { libc::fdatasync(fd) })
        }
        DiskOperation::Discard { .. } | DiskOperation::WriteZeroes { .. } => {
            let (mode, offset, len) = fallocate_of(operation).unwrap_or_default();
            let (offset, len) = (to_offset(offset)?, to_offset(len)?);
            // SAFETY: the call takes numbers only.
            i64::from(unsafe { libc::fallocate64(fd, mode, offset, len) })
        }
    };
    if answer < 0 {
        let number = io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO);
        return Ok(-i64::from(number));
    }
    Ok(answer)
}

/// The kernel takes 1024 vectors at once; the rest follows in another call.
fn vector_count(vectors: &[libc::iovec]) -> io::Result<i32> {
    i32::try_from(vectors.len().min(super::MAX_VECTORS)).map_err(io::Error::other)
}

impl Transfers for PlainTransfers {
    fn capacity(&self) -> usize {
        1
    }

    fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    fn start(&mut self, tag: usize, file: FileId, operation: DiskOperation) {
        let result = self.perform(file, operation);
        self.finished.push(Completion { tag, result });
        self.wake();
    }

    fn submit(&mut self) {}

    fn take_completions(&mut self, finished: &mut Vec<Completion>) {
        // Only clears the counter.
        let _ = self.event.read();
        finished.append(&mut self.finished);
    }

    fn wait(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn wake(&self) {
        // Fails only when the counter is full: then it is readable already.
        let _ = self.event.write(1);
    }
}
