//! A driver side in host memory: what tests, benches and fuzz targets drive devices with.
//!
//! [`TestDriver`] does what a correct driver does. [`DriverQueue`] below it also publishes
//! whatever a hostile one might.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a harness for tests: a broken one has to stop the test"
)]

use std::collections::HashMap;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::device::{Activation, QueueHandle, VirtioDevice, VirtioInterrupt};
use crate::GuestMemory;

/// How long [`TestDriver::complete`] waits for a device before it fails the test.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// The flag of a descriptor that continues at its `next` field.
pub const NEXT: u16 = 1;
/// The flag of a descriptor the device writes.
pub const WRITE: u16 = 2;
/// The flag of a descriptor that holds a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Guest memory of `len` bytes from address 0.
#[must_use]
pub fn guest_memory(len: usize) -> GuestMemory {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).unwrap())
}

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

/// Counts the interrupts of a device and wakes who waits for one.
#[derive(Default)]
pub struct RecordedInterrupt {
    seen: Mutex<Interrupts>,
    changed: Condvar,
}

/// What a device has signalled so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interrupts {
    /// Queue interrupts, by queue index.
    pub queues: HashMap<u16, usize>,
    /// Configuration change interrupts.
    pub config: usize,
    /// Causes of `DEVICE_NEEDS_RESET`.
    pub needs_reset: Vec<String>,
}

impl RecordedInterrupt {
    /// What was signalled so far.
    #[must_use]
    pub fn seen(&self) -> Interrupts {
        self.seen.lock().unwrap().clone()
    }

    /// Waits until `reached` holds.
    ///
    /// # Panics
    /// After [`TIMEOUT`].
    pub fn wait_until(&self, reached: impl Fn(&Interrupts) -> bool) {
        let seen = self.seen.lock().unwrap();
        let wait = self
            .changed
            .wait_timeout_while(seen, TIMEOUT, |seen| !reached(seen));
        let (seen, timeout) = wait.unwrap();
        assert!(
            !timeout.timed_out(),
            "the device did not signal in time: {seen:?}"
        );
    }

    fn record(&self, change: impl FnOnce(&mut Interrupts)) {
        change(&mut self.seen.lock().unwrap());
        self.changed.notify_all();
    }
}

impl VirtioInterrupt for RecordedInterrupt {
    fn queue(&self, index: u16) {
        self.record(|seen| *seen.queues.entry(index).or_default() += 1);
    }
    fn config(&self) {
        self.record(|seen| seen.config += 1);
    }
    fn needs_reset(&self, cause: &str) {
        self.record(|seen| seen.needs_reset.push(cause.to_owned()));
    }
}

/// A finished request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The request's head, as [`TestDriver::request`] returned it.
    pub head: u16,
    /// How many bytes the device says it wrote.
    pub len: u32,
    /// All that lies in the writable buffer now, also beyond `len`.
    pub writable: Vec<u8>,
}

/// A driver with its queues, buffers and interrupts.
pub struct TestDriver {
    /// The guest's memory: rings first, then buffers.
    pub memory: GuestMemory,
    /// The queues, by index.
    pub queues: Vec<DriverQueue>,
    /// The interrupts seen.
    pub interrupt: Arc<RecordedInterrupt>,
    next_free: u64,
    writable: HashMap<(usize, u16), Buffer>,
}

impl TestDriver {
    /// A driver over `memory_len` bytes with one queue of each size.
    #[must_use]
    pub fn new(memory_len: usize, queue_sizes: &[u16]) -> Self {
        Self::with_memory(guest_memory(memory_len), queue_sizes)
    }

    /// A driver over `memory`, which begins at address 0.
    #[must_use]
    pub fn with_memory(memory: GuestMemory, queue_sizes: &[u16]) -> Self {
        // Address 0 is no valid ring address for the device's half.
        let mut driver = Self {
            memory,
            queues: Vec::new(),
            interrupt: Arc::default(),
            next_free: 0x1000,
            writable: HashMap::new(),
        };
        for &size in queue_sizes {
            let base = driver.allocate(DriverQueue::rings_len(size), 16);
            driver
                .queues
                .push(DriverQueue::new(Arc::clone(&driver.memory), base, size));
        }
        driver
    }

    /// Takes `len` bytes of guest memory that nothing else uses; they are never given back.
    pub fn allocate(&mut self, len: u64, align: u64) -> u64 {
        let address = self.next_free.next_multiple_of(align);
        self.next_free = address + len;
        address
    }

    /// What a transport would hand to the device, with all queues enabled.
    #[must_use]
    pub fn activation(&self, driver_features: u64) -> Activation {
        let event_idx = driver_features >> 29 & 1 == 1;
        let handles = self.queues.iter().zip(0..);
        Activation {
            memory: Arc::clone(&self.memory),
            driver_features,
            queues: handles
                .map(|(queue, index)| queue.handle(index, event_idx))
                .collect(),
            interrupt: Arc::clone(&self.interrupt) as Arc<dyn VirtioInterrupt>,
        }
    }

    /// Activates `device` with `driver_features`.
    pub fn start(&self, device: &mut dyn VirtioDevice, driver_features: u64) {
        device.activate(self.activation(driver_features)).unwrap();
    }

    /// Sends `readable` bytes and room for `writable_len` bytes as one request to a queue,
    /// and notifies the device.
    pub fn request(&mut self, queue: usize, readable: &[u8], writable_len: u32) -> u16 {
        let mut buffers = Vec::new();
        if !readable.is_empty() {
            let len = u32::try_from(readable.len()).unwrap();
            let address = self.allocate(u64::from(len), 8);
            self.memory
                .write_slice(readable, GuestAddress(address))
                .unwrap();
            buffers.push(Buffer {
                address,
                len,
                writable: false,
            });
        }
        let mut room = None;
        if writable_len > 0 {
            let address = self.allocate(u64::from(writable_len), 8);
            let buffer = Buffer {
                address,
                len: writable_len,
                writable: true,
            };
            buffers.push(buffer);
            room = Some(buffer);
        }
        let head = self.queues[queue].add(&buffers);
        if let Some(room) = room {
            self.writable.insert((queue, head), room);
        }
        self.queues[queue].kick();
        head
    }

    /// Waits for the next finished request of a queue.
    ///
    /// # Panics
    /// After [`TIMEOUT`].
    pub fn complete(&mut self, queue: usize) -> Completion {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(completion) = self.try_complete(queue) {
                return completion;
            }
            assert!(
                Instant::now() < deadline,
                "the device did not finish in time"
            );
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// The next finished request of a queue, if there is one by now.
    pub fn try_complete(&mut self, queue: usize) -> Option<Completion> {
        let Used { head, len } = self.queues[queue].used()?;
        let room = self.writable.remove(&(queue, head));
        let writable = room.map_or_else(Vec::new, |room| {
            let mut bytes = vec![0; usize::try_from(room.len).unwrap()];
            self.memory
                .read_slice(&mut bytes, GuestAddress(room.address))
                .unwrap();
            bytes
        });
        Some(Completion {
            head,
            len,
            writable,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_devices_half_sees_the_buffers_of_direct_and_indirect_requests() {
        let mut driver = TestDriver::new(0x10000, &[8]);
        let Activation {
            memory, mut queues, ..
        } = driver.activation(0);
        let table = driver.allocate(64, 16);
        let buffers = [
            Buffer {
                address: 0x8000,
                len: 16,
                writable: false,
            },
            Buffer {
                address: 0x9000,
                len: 32,
                writable: true,
            },
        ];
        let direct = driver.queues[0].add(&buffers);
        let indirect = driver.queues[0].add_indirect(&buffers, table);
        for head in [direct, indirect] {
            let chain = queues[0]
                .queue
                .pop_descriptor_chain(memory.as_ref())
                .unwrap();
            assert_eq!(chain.head_index(), head);
            let seen: Vec<_> = chain
                .map(|d| (d.addr().0, d.len(), d.is_write_only()))
                .collect();
            assert_eq!(seen, [(0x8000, 16, false), (0x9000, 32, true)]);
            queues[0].queue.add_used(memory.as_ref(), head, 5).unwrap();
            assert_eq!(driver.queues[0].used(), Some(Used { head, len: 5 }));
        }
        assert_eq!(driver.queues[0].used(), None);
        assert_eq!(driver.queues[0].free.len(), 8, "all descriptors came back");
    }

    #[test]
    fn a_request_returns_what_the_device_wrote() {
        let mut driver = TestDriver::new(0x10000, &[8]);
        let Activation {
            memory, mut queues, ..
        } = driver.activation(0);
        let head = driver.request(0, b"ping", 4);
        let chain = queues[0]
            .queue
            .pop_descriptor_chain(memory.as_ref())
            .unwrap();
        let room = chain.writable().next().unwrap();
        memory.write_slice(b"pong", room.addr()).unwrap();
        queues[0].queue.add_used(memory.as_ref(), head, 4).unwrap();
        let completion = driver.complete(0);
        assert_eq!(
            completion,
            Completion {
                head,
                len: 4,
                writable: b"pong".to_vec()
            }
        );
    }
}
