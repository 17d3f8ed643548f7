//! A raw disk image or block device as a disk's data.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::{AsRawFd as _, RawFd};

use vmm_sys_util::eventfd::EventFd;

use super::backend::{Completion, DiskBackend, DiskOperation};
use super::uring::UringDisk;

/// The disk in `file`: with `io_uring`, or with plain system calls on hosts that forbid it.
///
/// # Errors
/// When the length of the file cannot be found out, or the host has no resources for a disk.
pub fn open(mut file: File) -> io::Result<Box<dyn DiskBackend>> {
    // For block devices the metadata have no length; seeking finds it for both.
    let len = file.seek(SeekFrom::End(0))?;
    let copy = file.try_clone()?;
    match UringDisk::new(copy, len) {
        Ok(disk) => Ok(Box::new(disk)),
        Err(error) => {
            tracing::info!(%error, "no io_uring on this host: the disk uses plain system calls");
            Ok(Box::new(PlainDisk::new(file, len)?))
        }
    }
}

/// How `fallocate` does an operation: mode, offset and length.
pub fn fallocate_of(operation: &DiskOperation) -> Option<(i32, u64, u64)> {
    let keep = libc::FALLOC_FL_KEEP_SIZE;
    match *operation {
        DiskOperation::Discard { offset, len }
        | DiskOperation::WriteZeroes {
            offset,
            len,
            unmap: true,
        } => Some((libc::FALLOC_FL_PUNCH_HOLE | keep, offset, len)),
        DiskOperation::WriteZeroes {
            offset,
            len,
            unmap: false,
        } => Some((libc::FALLOC_FL_ZERO_RANGE | keep, offset, len)),
        _ => None,
    }
}

/// What to do about the answer of a system call.
#[derive(Debug)]
pub enum Step {
    /// The operation has ended.
    Done(io::Result<()>),
    /// The rest of it is to be tried again.
    Again,
}

/// Notes the answer of a system call (a length, or a negative error number) for `operation`.
pub fn advance(operation: &mut DiskOperation, answer: i64) -> Step {
    let Ok(transferred) = usize::try_from(answer) else {
        let number = i32::try_from(-answer).unwrap_or(libc::EIO);
        return match number {
            libc::EINTR | libc::EAGAIN => Step::Again,
            libc::EOPNOTSUPP => Step::Done(Err(io::ErrorKind::Unsupported.into())),
            number => Step::Done(Err(io::Error::from_raw_os_error(number))),
        };
    };
    let (DiskOperation::Read { offset, buffers } | DiskOperation::Write { offset, buffers }) =
        operation
    else {
        return Step::Done(Ok(()));
    };
    buffers.advance(transferred);
    *offset += transferred as u64;
    match (buffers.is_done(), transferred) {
        (true, _) => Step::Done(Ok(())),
        // The file is shorter than the disk was: somebody cut it.
        (false, 0) => Step::Done(Err(io::ErrorKind::UnexpectedEof.into())),
        (false, _) => Step::Again,
    }
}

/// Does each operation at once, on the disk's own thread.
struct PlainDisk {
    file: File,
    len: u64,
    event: EventFd,
    finished: Vec<Completion>,
}

impl PlainDisk {
    fn new(file: File, len: u64) -> io::Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self {
            file,
            len,
            event,
            finished: Vec::new(),
        })
    }

    fn perform(&self, mut operation: DiskOperation) -> io::Result<()> {
        loop {
            let answer = call(self.file.as_raw_fd(), &operation)?;
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
            // SAFETY: the vectors point into guest memory that `buffers` keeps mapped.
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

fn vector_count(vectors: &[libc::iovec]) -> io::Result<i32> {
    i32::try_from(vectors.len()).map_err(io::Error::other)
}

impl DiskBackend for PlainDisk {
    fn disk_len(&self) -> u64 {
        self.len
    }

    fn max_in_flight(&self) -> usize {
        1
    }

    fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    fn start(&mut self, tag: usize, operation: DiskOperation) {
        let result = self.perform(operation);
        self.finished.push(Completion { tag, result });
        // Fails only when the counter is full: then it is readable already.
        let _ = self.event.write(1);
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
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The disk in `file` as on a host without `io_uring`.
    pub(in super::super) fn open_plain(mut file: File) -> Box<dyn DiskBackend> {
        let len = file.seek(SeekFrom::End(0)).unwrap();
        Box::new(PlainDisk::new(file, len).unwrap())
    }

    #[test]
    fn answers_end_an_operation_or_ask_for_another_try() {
        let mut flush = DiskOperation::Flush;
        assert!(matches!(advance(&mut flush, 0), Step::Done(Ok(()))));
        assert!(matches!(
            advance(&mut flush, -i64::from(libc::EINTR)),
            Step::Again
        ));
        for (number, kind) in [
            (libc::EOPNOTSUPP, io::ErrorKind::Unsupported),
            (libc::ENOSPC, io::ErrorKind::StorageFull),
        ] {
            let Step::Done(Err(error)) = advance(&mut flush, -i64::from(number)) else {
                panic!("{number} is an error");
            };
            assert_eq!(error.kind(), kind);
        }
    }
}
