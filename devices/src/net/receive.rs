//! The guest's receive buffers, taken out of the queue ahead of the frames that fill them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::metrics::{NetMetrics, add};
use super::segments::{InvalidBuffer, Segments};
use super::used::add_used;
use super::{HEADER_LEN, MAX_FRAME_LEN};
use crate::GuestMemory;

/// Offset of `num_buffers`, a little-endian 16-bit number, in the header (5.1.6).
const NUM_BUFFERS_OFFSET: usize = 10;

/// One chain that the driver posted.
struct PostedBuffer {
    head: u16,
    len: usize,
    segments: usize,
    /// Where the two bytes of `num_buffers` lie if a frame begins here; the header may be
    /// spread over descriptors as the driver likes (2.7.4.1).
    num_buffers: [GuestAddress; 2],
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// The guest has it; its length without header.
    Frame(usize),
    /// It was longer than all posted buffers together.
    TooLong,
}

/// See the module.
pub struct ReceiveBuffers {
    memory: GuestMemory,
    segments: Segments,
    posted: VecDeque<PostedBuffer>,
    /// Bytes in all posted buffers.
    space: usize,
    /// Frames may be spread over several chains (`VIRTIO_NET_F_MRG_RXBUF`).
    merges: bool,
    filled: Vec<(u16, u32)>,
}

impl ReceiveBuffers {
    /// None yet.
    pub fn new(memory: GuestMemory, merges: bool) -> Self {
        Self {
            segments: Segments::new(memory.clone()),
            memory,
            posted: VecDeque::new(),
            space: 0,
            merges,
            filled: Vec::new(),
        }
    }

    /// Whether there is none to read into.
    pub fn is_empty(&self) -> bool {
        self.posted.is_empty()
    }

    /// Takes buffers from `queue` until the longest frame would fit, or there are no more.
    /// Those that make no sense go back at once. It looks at one queue's length of them at
    /// most, however fast a guest posts more.
    ///
    /// # Errors
    /// When the queue is broken.
    pub fn refill(&mut self, queue: &mut Queue, metrics: &NetMetrics) -> Result<(), Error> {
        let memory = self.memory.clone();
        for _ in 0..queue.size() {
            if !self.posted.is_empty() && (!self.merges || self.space >= MAX_FRAME_LEN) {
                break;
            }
            let Some(chain) = queue.iter(&*memory)?.next() else {
                return Ok(());
            };
            let head = chain.head_index();
            let segments = self.segments.count();
            match self.push(chain) {
                Ok(()) => {}
                // It may be sound, and there are only too many others before it.
                Err(InvalidBuffer) if segments > 0 => {
                    self.segments.truncate(segments);
                    queue.go_to_previous_position();
                    return Ok(());
                }
                Err(InvalidBuffer) => {
                    self.segments.truncate(segments);
                    add(&metrics.malformed_buffers, 1);
                    add_used(queue, &memory, &[(head, 0)])?;
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, chain: DescriptorChain<&GuestMemoryMmap<()>>) -> Result<(), InvalidBuffer> {
        let head = chain.head_index();
        let first_segment = self.segments.count();
        let mut len = 0;
        let mut num_buffers = [GuestAddress(0); 2];
        for descriptor in chain {
            if !descriptor.is_write_only() {
                return Err(InvalidBuffer);
            }
            let descriptor_len = usize::try_from(descriptor.len()).map_err(|_| InvalidBuffer)?;
            self.segments.push(descriptor.addr(), descriptor_len)?;
            for (byte, address) in num_buffers.iter_mut().enumerate() {
                let position = (NUM_BUFFERS_OFFSET + byte).checked_sub(len);
                if let Some(position) = position.filter(|position| *position < descriptor_len) {
                    // In memory, as `push` has found.
                    let position = u64::try_from(position).map_err(|_| InvalidBuffer)?;
                    address.0 = descriptor.addr().0.wrapping_add(position);
                }
            }
            len += descriptor_len;
        }
        if len < HEADER_LEN {
            return Err(InvalidBuffer);
        }
        let segments = self.segments.count() - first_segment;
        self.posted.push_back(PostedBuffer {
            head,
            len,
            segments,
            num_buffers,
        });
        self.space = self.space.saturating_add(len);
        Ok(())
    }

    /// Reads one frame from `fd` and gives the buffers it fills to the driver.
    ///
    /// # Errors
    /// The outer when reading fails (`WouldBlock` when there is no frame, `UnexpectedEof` when
    /// there will be none), the inner when the queue is broken.
    pub fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        queue: &mut Queue,
    ) -> io::Result<Result<Received, Error>> {
        let len = self.segments.read_from(fd)?;
        if len > self.space {
            return Ok(Ok(Received::TooLong));
        }
        let frame_len = len
            .checked_sub(HEADER_LEN)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(self
            .publish(len, queue)
            .map(|()| Received::Frame(frame_len)))
    }

    fn publish(&mut self, len: usize, queue: &mut Queue) -> Result<(), Error> {
        self.filled.clear();
        let mut first = None;
        let mut segments = 0;
        let mut rest = len;
        while rest > 0 {
            let Some(buffer) = self.posted.pop_front() else {
                break;
            };
            let part = buffer.len.min(rest);
            rest -= part;
            segments += buffer.segments;
            self.space -= buffer.len;
            self.filled
                .push((buffer.head, u32::try_from(part).unwrap_or(u32::MAX)));
            first.get_or_insert(buffer.num_buffers);
        }
        self.segments.remove_first(segments);
        let count = u16::try_from(self.filled.len()).unwrap_or(u16::MAX);
        for (byte, address) in count.to_le_bytes().into_iter().zip(first.iter().flatten()) {
            self.memory
                .write_obj(byte, *address)
                .map_err(Error::GuestMemory)?;
        }
        add_used(queue, &self.memory, &self.filled)
    }

    /// Puts the buffers that no frame filled back into `queue`.
    pub fn give_back(&mut self, queue: &mut Queue) {
        for _ in self.posted.drain(..) {
            queue.go_to_previous_position();
        }
        self.segments.truncate(0);
        self.space = 0;
    }
}
