//! The driver's half of a split ring (virtio 1.2, 2.7).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::GuestMemory;
use crate::virtio::device::QueueHandle;

/// The flag of a descriptor that continues at its `next` field.
pub const NEXT: u16 = 1;
/// The flag of a descriptor the device writes.
pub const WRITE: u16 = 2;
/// The flag of a descriptor that holds a table of descriptors.
pub const INDIRECT: u16 = 4;

/// One buffer of a request.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// Where it lies in guest memory.
    pub address: u64,
    /// Its length in bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

/// A raw descriptor of the split ring (virtio 1.2, 2.7.5).
#[derive(Clone, Copy, Debug, Default)]
pub struct RawDescriptor {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// The next descriptor, when [`NEXT`] is set.
    pub next: u16,
}

impl RawDescriptor {
    fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// One entry of the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The chain's first descriptor.
    pub head: u16,
    /// How many bytes the device says it wrote.
    pub len: u32,
}

/// The driver's half of one split ring.
pub struct DriverQueue {
    memory: GuestMemory,
    size: u16,
    descriptors: u64,
    avail: u64,
    used: u64,
    avail_index: u16,
    used_index: u16,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
    kick: Arc<EventFd>,
}

impl DriverQueue {
    /// Bytes that the rings of a queue of `size` take.
    #[must_use]
    pub fn rings_len(size: u16) -> u64 {
        let size = u64::from(size);
        (16 * size + (6 + 2 * size)).next_multiple_of(4) + 6 + 8 * size
    }

    /// A queue of `size` descriptors whose rings begin at `base` (16-byte aligned).
    #[must_use]
    pub fn new(memory: GuestMemory, base: u64, size: u16) -> Self {
        let avail = base + 16 * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        Self {
            memory,
            size,
            descriptors: base,
            avail,
            used,
            avail_index: 0,
            used_index: 0,
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
            kick: Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()),
        }
    }

    /// Addresses of descriptor table, available ring and used ring, as the transport wants.
    #[must_use]
    pub fn addresses(&self) -> [u64; 3] {
        [self.descriptors, self.avail, self.used]
    }

    /// The device's half, as a transport hands it to [`VirtioDevice::activate`].
    #[must_use]
    pub fn handle(&self, index: u16, event_idx: bool) -> QueueHandle {
        let mut queue = Queue::new(self.size).unwrap();
        let words = |address: u64| {
            let low = u32::try_from(address & 0xffff_ffff).unwrap();
            (Some(low), Some(u32::try_from(address >> 32).unwrap()))
        };
        let (low, high) = words(self.descriptors);
        queue.set_desc_table_address(low, high);
        let (low, high) = words(self.avail);
        queue.set_avail_ring_address(low, high);
        let (low, high) = words(self.used);
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        assert!(
            queue.is_valid(self.memory.as_ref()),
            "the rings fit into memory"
        );
        QueueHandle {
            index,
            queue,
            notify: Arc::clone(&self.kick),
        }
    }

    /// Whether `descriptors` descriptors are free.
    #[must_use]
    pub fn has_room(&self, descriptors: usize) -> bool {
        self.free.len() >= descriptors
    }

    /// Makes a request of `buffers` available and returns its head. The device is not
    /// notified yet.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let chain: Vec<u16> = buffers.iter().map(|_| self.free.pop().unwrap()).collect();
        for (position, buffer) in buffers.iter().enumerate() {
            let next = chain.get(position + 1);
            let flags = if buffer.writable { WRITE } else { 0 } | next.map_or(0, |_| NEXT);
            self.write_descriptor(
                chain[position],
                RawDescriptor {
                    address: buffer.address,
                    len: buffer.len,
                    flags,
                    next: next.copied().unwrap_or(0),
                },
            );
        }
        let head = chain[0];
        self.chains.insert(head, chain);
        self.publish(head);
        head
    }

    /// As [`Self::add`], with the descriptors in an indirect table written at `table`.
    pub fn add_indirect(&mut self, buffers: &[Buffer], table: u64) -> u16 {
        for (position, buffer) in buffers.iter().enumerate() {
            let last = position + 1 == buffers.len();
            let flags = if buffer.writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            let next = if last {
                0
            } else {
                u16::try_from(position + 1).unwrap()
            };
            let descriptor = RawDescriptor {
                address: buffer.address,
                len: buffer.len,
                flags,
                next,
            };
            let at = GuestAddress(table + 16 * position as u64);
            self.memory.write_slice(&descriptor.bytes(), at).unwrap();
        }
        let head = self.free.pop().unwrap();
        let len = u32::try_from(16 * buffers.len()).unwrap();
        self.write_descriptor(
            head,
            RawDescriptor {
                address: table,
                len,
                flags: INDIRECT,
                next: 0,
            },
        );
        self.chains.insert(head, vec![head]);
        self.publish(head);
        head
    }

    /// Writes one descriptor as it is, correct or not.
    pub fn write_descriptor(&self, index: u16, descriptor: RawDescriptor) {
        let at = GuestAddress(self.descriptors + 16 * u64::from(index));
        self.memory.write_slice(&descriptor.bytes(), at).unwrap();
    }

    /// Puts `head` into the available ring, whatever it is.
    pub fn publish(&mut self, head: u16) {
        let slot = u64::from(self.avail_index % self.size);
        self.memory
            .write_obj(head.to_le(), GuestAddress(self.avail + 4 + 2 * slot))
            .unwrap();
        self.set_avail_index(self.avail_index.wrapping_add(1));
    }

    /// Sets the available ring's index, whatever it is.
    pub fn set_avail_index(&mut self, index: u16) {
        self.avail_index = index;
        let at = GuestAddress(self.avail + 2);
        self.memory
            .store(index.to_le(), at, Ordering::Release)
            .unwrap();
    }

    /// Notifies the device.
    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Whether the device asks to be notified of what was made available since `old_index`
    /// requests were there (`VIRTIO_F_RING_EVENT_IDX`).
    #[must_use]
    pub fn wants_kick_since(&self, old_index: u16) -> bool {
        fence(Ordering::SeqCst);
        let at = GuestAddress(self.used + 4 + 8 * u64::from(self.size));
        let event: u16 = self.memory.load(at, Ordering::Relaxed).unwrap();
        self.avail_index.wrapping_sub(event).wrapping_sub(1)
            < self.avail_index.wrapping_sub(old_index)
    }

    /// Sets the used index at which the driver wants its next interrupt.
    pub fn set_used_event(&self, index: u16) {
        let at = GuestAddress(self.avail + 4 + 2 * u64::from(self.size));
        self.memory
            .store(index.to_le(), at, Ordering::Release)
            .unwrap();
    }

    /// The next used entry, if there is one; its descriptors become free.
    pub fn used(&mut self) -> Option<Used> {
        let index: u16 = self
            .memory
            .load(GuestAddress(self.used + 2), Ordering::Acquire)
            .unwrap();
        if u16::from_le(index) == self.used_index {
            return None;
        }
        let slot = u64::from(self.used_index % self.size);
        let at = self.used + 4 + 8 * slot;
        let id: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
        let len: u32 = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
        self.used_index = self.used_index.wrapping_add(1);
        let head = u16::try_from(u32::from_le(id)).unwrap();
        self.free
            .extend(self.chains.remove(&head).unwrap_or_default());
        Some(Used {
            head,
            len: u32::from_le(len),
        })
    }
}
