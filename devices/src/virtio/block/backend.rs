//! What a disk's data lies in, as the block device sees it.

use std::fmt;
use std::io;
use std::os::fd::RawFd;

use vm_memory::{GuestMemory as _, GuestMemoryError};

use crate::GuestMemory;
use crate::virtio::chain::Buffers;

/// One operation on a disk. Offsets and lengths are in bytes, within the disk.
#[derive(Debug)]
pub enum DiskOperation {
    /// Fills `buffers` from `offset` on.
    Read {
        /// Where to begin.
        offset: u64,
        /// Where the data goes.
        buffers: GuestIovecs,
    },
    /// Writes `buffers` from `offset` on.
    Write {
        /// Where to begin.
        offset: u64,
        /// Where the data comes from.
        buffers: GuestIovecs,
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

/// Buffers in guest memory as the kernel's vectored calls take them. They keep the memory
/// mapped.
pub struct GuestIovecs {
    iovecs: Vec<libc::iovec>,
    done: usize,
    memory: GuestMemory,
}

// SAFETY: the pointers are into guest memory, which any thread may access and which `memory`
// keeps mapped.
unsafe impl Send for GuestIovecs {}

impl GuestIovecs {
    /// The host's view of `buffers`.
    ///
    /// # Errors
    /// When they are not in guest memory.
    pub fn new(memory: &GuestMemory, buffers: &Buffers) -> Result<Self, GuestMemoryError> {
        let mut iovecs = Vec::with_capacity(buffers.ranges().len());
        for range in buffers.ranges() {
            for slice in memory.get_slices(range.address, range.len) {
                let slice = slice?;
                let iov_base = slice.ptr_guard_mut().as_ptr().cast();
                iovecs.push(libc::iovec {
                    iov_base,
                    iov_len: slice.len(),
                });
            }
        }
        Ok(Self {
            iovecs,
            done: 0,
            memory: GuestMemory::clone(memory),
        })
    }

    /// What is left to transfer: pointer and number of vectors. They stay valid as long as
    /// `self` lives and does not [`advance`](Self::advance).
    #[must_use]
    pub fn left(&self) -> &[libc::iovec] {
        self.iovecs.get(self.done..).unwrap_or_default()
    }

    /// Whether all is transferred.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.left().is_empty()
    }

    /// Notes that `len` bytes more were transferred.
    pub fn advance(&mut self, len: usize) {
        let mut rest = len;
        while let Some(first) = self.iovecs.get_mut(self.done) {
            if rest < first.iov_len {
                first.iov_base = first.iov_base.wrapping_byte_add(rest);
                first.iov_len -= rest;
                return;
            }
            rest -= first.iov_len;
            self.done += 1;
        }
    }
}

impl fmt::Debug for GuestIovecs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len: usize = self.left().iter().map(|iovec| iovec.iov_len).sum();
        let regions = self.memory.num_regions();
        write!(
            formatter,
            "GuestIovecs({} with {len} bytes of {regions} regions)",
            self.left().len()
        )
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;
    use crate::virtio::chain::Parts;
    use crate::virtio::testing::{Buffer, TestDriver};
    use virtio_queue::QueueT as _;

    #[test]
    fn partial_transfers_leave_the_rest() {
        let mut driver = TestDriver::new(0x10000, &[8]);
        let buffer = |address, len| Buffer {
            address,
            len,
            writable: false,
        };
        driver.queues[0].add(&[buffer(0x8000, 10), buffer(0x9000, 20)]);
        driver
            .memory
            .write_obj(42_u8, GuestAddress(0x9003))
            .unwrap();
        let mut queue = driver.queues[0].handle(0, false).queue;
        let chain = queue.pop_descriptor_chain(driver.memory.as_ref()).unwrap();
        let parts = Parts::of(chain, 8).unwrap();
        let mut iovecs = GuestIovecs::new(&driver.memory, &parts.readable).unwrap();
        let lens = |iovecs: &GuestIovecs| -> Vec<usize> {
            iovecs.left().iter().map(|iovec| iovec.iov_len).collect()
        };
        assert_eq!(lens(&iovecs), [10, 20]);
        iovecs.advance(4);
        assert_eq!(lens(&iovecs), [6, 20]);
        iovecs.advance(9);
        assert_eq!(lens(&iovecs), [17]);
        // SAFETY: the vector points to the byte written above, in memory that is mapped.
        assert_eq!(unsafe { *iovecs.left()[0].iov_base.cast::<u8>() }, 42);
        iovecs.advance(17);
        assert!(iovecs.is_done());
        iovecs.advance(1);
        assert!(iovecs.is_done());
    }
}
