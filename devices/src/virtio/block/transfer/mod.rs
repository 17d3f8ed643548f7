//! The way between memory and the files that a disk consists of.

mod file;
mod plain;
mod uring;

use std::io;
use std::os::fd::RawFd;

pub use self::file::{CacheMode, DiskFile};
use self::plain::PlainTransfers;
use self::uring::UringTransfers;
use super::backend::{Completion, DiskOperation};

/// Vectors of one system call (`UIO_MAXIOV`).
const MAX_VECTORS: usize = 1024;

/// Position of a file in the list that [`open`] got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId(pub usize);

/// Operations on files, side by side, that end in any order. Offsets are those of the files.
/// Dropping it waits for what is in flight, since the kernel uses the memory meanwhile.
pub trait Transfers: Send {
    /// How many may be in flight at once.
    fn capacity(&self) -> usize;
    /// Becomes readable (an event file, nonblocking) when some have finished.
    fn event(&self) -> RawFd;
    /// Starts one; a failure is reported as its completion.
    fn start(&mut self, tag: usize, file: FileId, operation: DiskOperation);
    /// Hands over what was started.
    fn submit(&mut self);
    /// Takes what has finished; does not wait.
    fn take_completions(&mut self, finished: &mut Vec<Completion>);
    /// Waits until one has finished.
    ///
    /// # Errors
    /// When the host cannot wait; operations may be in flight then.
    fn wait(&mut self) -> io::Result<()>;
    /// Makes [`Self::event`] readable: there is something to take though no transfer ended.
    fn wake(&self);
}

/// Transfers with `files`: with `io_uring`, or with plain system calls on hosts that forbid it.
///
/// # Errors
/// When the host has no resources for them.
pub fn open(files: Vec<DiskFile>) -> io::Result<Box<dyn Transfers>> {
    match UringTransfers::new() {
        Ok(mut transfers) => {
            transfers.files = files;
            Ok(Box::new(transfers))
        }
        Err(error) => {
            tracing::info!(%error, "no io_uring on this host: the disk uses plain system calls");
            open_plain(files)
        }
    }
}

/// Transfers with `files` as on a host that forbids `io_uring`.
///
/// # Errors
/// When the host has no resources for them.
pub fn open_plain(files: Vec<DiskFile>) -> io::Result<Box<dyn Transfers>> {
    Ok(Box::new(PlainTransfers::new(files)?))
}

/// How `fallocate` does an operation: mode, offset and length.
fn fallocate_of(operation: &DiskOperation) -> Option<(i32, u64, u64)> {
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
enum Step {
    /// The operation has ended.
    Done(io::Result<()>),
    /// The rest of it is to be tried again.
    Again,
}

/// Notes the answer of a system call (a length, or a negative error number) for `operation`.
fn advance(operation: &mut DiskOperation, answer: i64) -> Step {
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
    match (buffers.is_empty(), transferred) {
        (true, _) => Step::Done(Ok(())),
        // The file is shorter than the disk was: somebody cut it.
        (false, 0) => Step::Done(Err(io::ErrorKind::UnexpectedEof.into())),
        (false, _) => Step::Again,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
