//! Guest memory as the scattered pieces that one system call reads or writes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::{GuestAddress, GuestMemory as _};

use crate::GuestMemory;

/// `UIO_MAXIOV` of Linux, less the one piece of ours that [`Segments::read_from`] adds.
pub const MAX_SEGMENTS: usize = 1023;

/// Pieces of the memory of one guest, in order.
pub struct Segments {
    memory: GuestMemory,
    pieces: Vec<libc::iovec>,
}

// SAFETY: the pointers lead into the mappings that `memory` keeps alive, which any thread may
// use; what lies there is shared with the guest and never borrowed by Rust references.
unsafe impl Send for Segments {}

/// The buffer is not in guest memory, or is in too many pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidBuffer;

impl Segments {
    /// No pieces of `memory`.
    pub fn new(memory: GuestMemory) -> Self {
        Self {
            memory,
            pieces: Vec::new(),
        }
    }

    /// How many pieces there are.
    pub fn count(&self) -> usize {
        self.pieces.len()
    }

    /// Appends `len` bytes at `address`.
    ///
    /// # Errors
    /// [`InvalidBuffer`]; some pieces of it may have been appended.
    pub fn push(&mut self, address: GuestAddress, len: usize) -> Result<(), InvalidBuffer> {
        for slice in self.memory.get_slices(address, len) {
            let slice = slice.map_err(|_| InvalidBuffer)?;
            if self.pieces.len() >= MAX_SEGMENTS {
                return Err(InvalidBuffer);
            }
            self.pieces.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
        }
        Ok(())
    }

    /// Keeps the first `count` pieces.
    pub fn truncate(&mut self, count: usize) {
        self.pieces.truncate(count);
    }

    /// Removes the first `count` pieces.
    pub fn remove_first(&mut self, count: usize) {
        self.pieces.drain(..count.min(self.pieces.len()));
    }

    /// Reads one frame into the pieces, and a byte that does not fit into them elsewhere, so
    /// that a result above their length tells that the frame was longer.
    ///
    /// # Errors
    /// What `readv` answers.
    pub fn read_from(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let mut rest = 0_u8;
        self.pieces.push(libc::iovec {
            iov_base: (&raw mut rest).cast(),
            iov_len: 1,
        });
        let count = self.pieces.len();
        // SAFETY: every piece lies in a mapping of guest memory, but the last, which is `rest`;
        // all of them stay where they are during the call.
        let result = unsafe { libc::readv(fd.as_raw_fd(), self.pieces.as_ptr(), iovcnt(count)) };
        self.pieces.truncate(count - 1);
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// Writes the pieces as one frame.
    ///
    /// # Errors
    /// What `writev` answers.
    pub fn write_to(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let count = iovcnt(self.pieces.len());
        // SAFETY: every piece lies in a mapping of guest memory, which stays where it is.
        let result = unsafe { libc::writev(fd.as_raw_fd(), self.pieces.as_ptr(), count) };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}

/// At most [`MAX_SEGMENTS`] and one, so it always fits.
fn iovcnt(count: usize) -> libc::c_int {
    libc::c_int::try_from(count).unwrap_or(0)
}
