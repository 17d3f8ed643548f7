//! What a disk's data lies in, as the block device sees it.

use std::io;
use std::os::fd::RawFd;

pub use super::iovecs::Iovecs;

/// One operation on a disk. Offsets and lengths are in bytes, within the disk.
#[derive(Debug)]
pub enum DiskOperation {
    /// Fills `buffers` from `offset` on.
    Read {
        /// Where to begin.
        offset: u64,
        /// Where the data goes.
        buffers: Iovecs,
    },
    /// Writes `buffers` from `offset` on.
    Write {
        /// Where to begin.
        offset: u64,
        /// Where the data comes from.
        buffers: Iovecs,
    },
    /// Makes all finished writes durable.
    Flush,
    /// The data of the range is not needed any more.
    Discard {
        /// Where to begin.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Makes the range read as zeros.
    WriteZeroes {
        /// Where to begin.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// Whether the range may lose its room on the host.
        unmap: bool,
    },
}

/// A finished operation.
#[derive(Debug)]
pub struct Completion {
    /// The number it was started with.
    pub tag: usize,
    /// Whether it was done as a whole; `Unsupported` when this disk cannot do it.
    pub result: io::Result<()>,
}

/// A disk's data. Operations run side by side and end in any order. A backend that is
/// dropped waits for what is in flight, since the kernel writes to guest memory meanwhile.
pub trait DiskBackend: Send {
    /// Length of the disk in bytes.
    fn disk_len(&self) -> u64;
    /// How many operations may be in flight at once.
    fn max_in_flight(&self) -> usize;
    /// Whether a write is durable when it has finished, so that nobody needs to flush.
    fn is_durable(&self) -> bool {
        false
    }
    /// Becomes readable (an event file, nonblocking) when operations have finished.
    fn event(&self) -> RawFd;
    /// Starts an operation; a failure is reported as its completion.
    fn start(&mut self, tag: usize, operation: DiskOperation);
    /// Hands over what was started, once a round.
    fn submit(&mut self);
    /// Takes the operations that have finished; does not wait.
    fn take_completions(&mut self, finished: &mut Vec<Completion>);
    /// Waits until an operation has finished.
    ///
    /// # Errors
    /// When the host cannot wait; operations may be in flight then.
    fn wait(&mut self) -> io::Result<()>;
}
