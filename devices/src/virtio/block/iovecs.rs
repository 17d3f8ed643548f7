//! Memory that an operation fills or takes its data from, as the kernel's vectored calls want it.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::{GuestMemory as _, GuestMemoryError};

use crate::GuestMemory;
use crate::virtio::chain::Buffers;

/// Alignment of [`HostBuffer`]s: that of the strictest direct I/O.
const BUFFER_ALIGN: usize = 4096;

/// Memory of this process for data on its way from one place of a disk to another. Nothing but
/// the kernel looks into it, and [`Iovecs::copy_in`].
struct HostBuffer {
    bytes: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory belongs to the buffer; there are only pointers to it, which `Iovecs` hands
// to system calls.
unsafe impl Send for HostBuffer {}
// SAFETY: as above; a shared buffer gives nothing but its address.
unsafe impl Sync for HostBuffer {}

impl HostBuffer {
    /// `len` zeros. The caller bounds `len`, which is not zero.
    fn new(len: usize) -> Self {
        let layout = Layout::from_size_align(len.max(1), BUFFER_ALIGN);
        // Only a length near the end of the address space has no layout: there is no such memory.
        let layout = layout.unwrap_or(Layout::new::<[u8; BUFFER_ALIGN]>());
        // SAFETY: the layout is not empty.
        let bytes = NonNull::new(unsafe { alloc_zeroed(layout) });
        let bytes = bytes.unwrap_or_else(|| handle_alloc_error(layout));
        Self { bytes, layout }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout and is freed once.
        unsafe { dealloc(self.bytes.as_ptr(), self.layout) }
    }
}

/// Buffers of the guest or of this process. They keep the memory mapped, so the pointers of
/// [`Self::left`] are good as long as the value lives.
pub struct Iovecs {
    vectors: Vec<libc::iovec>,
    done: usize,
    guest: Option<GuestMemory>,
    host: Vec<Arc<HostBuffer>>,
}

// SAFETY: the pointers are into guest memory, which any thread may access and which `guest`
// keeps mapped, or into buffers that `host` keeps.
unsafe impl Send for Iovecs {}

impl Iovecs {
    /// The host's view of `buffers`.
    ///
    /// # Errors
    /// When they are not in guest memory.
    pub fn new(memory: &GuestMemory, buffers: &Buffers) -> Result<Self, GuestMemoryError> {
        let mut vectors = Vec::with_capacity(buffers.ranges().len());
        for range in buffers.ranges() {
            for slice in memory.get_slices(range.address, range.len) {
                let slice = slice?;
                vectors.push(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
            }
        }
        Ok(Self {
            vectors,
            done: 0,
            guest: Some(GuestMemory::clone(memory)),
            host: Vec::new(),
        })
    }

    /// `len` zeros in memory of this process. The caller bounds `len`.
    #[must_use]
    pub fn zeros(len: usize) -> Self {
        let buffer = HostBuffer::new(len);
        let vector = libc::iovec {
            iov_base: buffer.bytes.as_ptr().cast(),
            iov_len: buffer.layout.size().min(len),
        };
        Self {
            vectors: if len > 0 { vec![vector] } else { Vec::new() },
            done: 0,
            guest: None,
            host: vec![Arc::new(buffer)],
        }
    }

    /// What is left to transfer: pointer and number of vectors. They stay valid as long as
    /// `self` lives and does not [`advance`](Self::advance).
    #[must_use]
    pub fn left(&self) -> &[libc::iovec] {
        self.vectors.get(self.done..).unwrap_or_default()
    }

    /// Bytes left to transfer.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.left().iter().map(|vector| vector.iov_len as u64).sum()
    }

    /// Whether all is transferred.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.left().is_empty()
    }

    /// Notes that `len` bytes more were transferred.
    pub fn advance(&mut self, len: usize) {
        let mut rest = len;
        while let Some(first) = self.vectors.get_mut(self.done) {
            if rest < first.iov_len {
                first.iov_base = first.iov_base.wrapping_byte_add(rest);
                first.iov_len -= rest;
                return;
            }
            rest -= first.iov_len;
            self.done += 1;
        }
    }

    /// The `len` bytes behind the first `skip` of what is left, in the same memory.
    #[must_use]
    pub fn part(&self, skip: u64, len: u64) -> Self {
        let (mut skip, mut rest) = (skip, len);
        let mut vectors = Vec::new();
        for vector in self.left() {
            let before = skip.min(vector.iov_len as u64);
            let now = rest.min(vector.iov_len as u64 - before);
            skip -= before;
            rest -= now;
            // Both are at most the vector's length, a usize.
            if let (Ok(before), Ok(iov_len @ 1..)) = (usize::try_from(before), usize::try_from(now))
            {
                vectors.push(libc::iovec {
                    iov_base: vector.iov_base.wrapping_byte_add(before),
                    iov_len,
                });
            }
        }
        Self {
            vectors,
            done: 0,
            guest: self.guest.clone(),
            host: self.host.clone(),
        }
    }

    /// Puts the buffers of `other` behind these. Both are of one guest.
    pub fn append(&mut self, mut other: Self) {
        self.vectors.extend_from_slice(other.left());
        self.host.append(&mut other.host);
        self.guest = self.guest.take().or(other.guest);
    }

    /// Whether all vectors begin and end at multiples of `align` bytes.
    #[must_use]
    pub fn is_aligned(&self, align: usize) -> bool {
        let aligned = |vector: &libc::iovec| {
            vector.iov_base.addr().is_multiple_of(align) && vector.iov_len.is_multiple_of(align)
        };
        self.left().iter().all(aligned)
    }

    /// Copies `bytes` to the beginning of what is left, as much as there is room for.
    pub fn copy_in(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        for vector in self.left() {
            let (now, later) = rest.split_at(rest.len().min(vector.iov_len));
            let target = vector.iov_base.cast::<u8>();
            // SAFETY: the vector is mapped memory of at least this length, and no Rust
            // reference exists to it; `bytes` is not part of it. A guest that writes there at
            // the same time garbles only its own data.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), target, now.len()) };
            rest = later;
        }
    }

    /// What is in the memory now.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for vector in self.left() {
            let start = vector.iov_base.cast::<u8>();
            // SAFETY: the vector is mapped memory of this length; a copy is made of it at once.
            bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(start, vector.iov_len) });
        }
        bytes
    }

    /// Fills all that is left with zeros.
    pub fn zero(&mut self) {
        for vector in self.left() {
            // SAFETY: as in `copy_in`.
            unsafe { std::ptr::write_bytes(vector.iov_base.cast::<u8>(), 0, vector.iov_len) };
        }
    }
}

impl fmt::Debug for Iovecs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "Iovecs({} with {} bytes)",
            self.left().len(),
            self.len()
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

    fn lens(iovecs: &Iovecs) -> Vec<usize> {
        iovecs.left().iter().map(|iovec| iovec.iov_len).collect()
    }

    fn byte_at(vector: libc::iovec) -> u8 {
        // SAFETY: the vectors of these tests point to mapped memory of at least one byte.
        unsafe { *vector.iov_base.cast::<u8>() }
    }

    /// Ten bytes and twenty bytes of guest memory.
    fn of_guest() -> (TestDriver, Iovecs) {
        let mut driver = TestDriver::new(0x10000, &[8]);
        let buffer = |address, len| Buffer {
            address,
            len,
            writable: false,
        };
        driver.queues[0].add(&[buffer(0x8000, 10), buffer(0x9000, 20)]);
        let mut queue = driver.queues[0].handle(0, false).queue;
        let chain = queue.pop_descriptor_chain(driver.memory.as_ref()).unwrap();
        let parts = Parts::of(chain, 8).unwrap();
        let iovecs = Iovecs::new(&driver.memory, &parts.readable).unwrap();
        (driver, iovecs)
    }

    #[test]
    fn partial_transfers_leave_the_rest() {
        let (driver, mut iovecs) = of_guest();
        driver
            .memory
            .write_obj(42_u8, GuestAddress(0x9003))
            .unwrap();
        assert_eq!(lens(&iovecs), [10, 20]);
        iovecs.advance(4);
        assert_eq!(lens(&iovecs), [6, 20]);
        iovecs.advance(9);
        assert_eq!(lens(&iovecs), [17]);
        assert_eq!(byte_at(iovecs.left()[0]), 42);
        iovecs.advance(17);
        assert!(iovecs.is_empty());
        iovecs.advance(1);
        assert!(iovecs.is_empty());
    }

    #[test]
    fn parts_lie_in_the_same_memory() {
        let (driver, iovecs) = of_guest();
        assert_eq!(lens(&iovecs.part(4, 8)), [6, 2]);
        assert_eq!(lens(&iovecs.part(10, 99)), [20]);
        assert!(iovecs.part(30, 1).is_empty());
        let mut part = iovecs.part(8, 4);
        part.copy_in(b"abcdef");
        let seen = |at| driver.memory.read_obj::<u8>(GuestAddress(at)).unwrap();
        assert_eq!([0x8007, 0x8008, 0x8009].map(seen), [0, b'a', b'b']);
        assert_eq!([0x9000, 0x9001, 0x9002].map(seen), [b'c', b'd', 0]);
        part.zero();
        assert_eq!([0x8009, 0x9000].map(seen), [0, 0]);
    }

    #[test]
    fn host_buffers_are_zeros_that_outlive_their_first_owner() {
        let mut all = Iovecs::zeros(100);
        assert_eq!(byte_at(all.left()[0]), 0);
        all.copy_in(&[7; 100]);
        let mut end = all.part(98, 2);
        end.append(Iovecs::zeros(8192));
        drop(all);
        assert_eq!((lens(&end), end.len()), (vec![2, 8192], 8194));
        assert_eq!(byte_at(end.left()[0]), 7);
        assert!(end.part(2, 8192).is_aligned(4096) && !end.is_aligned(4));
        assert!(Iovecs::zeros(0).is_empty());
    }
}
