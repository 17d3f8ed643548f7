//! A driver side in host memory: what tests, benches and fuzz targets drive devices with.
//!
//! [`TestDriver`] does what a correct driver does. [`DriverQueue`] below it also publishes
//! whatever a hostile one might.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a harness for tests: a broken one has to stop the test"
)]

mod interrupt;
mod queue;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::device::{Activation, VirtioDevice, VirtioInterrupt};
use crate::GuestMemory;

pub use self::interrupt::{Interrupts, RecordedInterrupt};
pub use self::queue::{Buffer, DriverQueue, INDIRECT, NEXT, RawDescriptor, Used, WRITE};

/// How long [`TestDriver::complete`] waits for a device before it fails the test.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Guest memory of `len` bytes from address 0.
#[must_use]
pub fn guest_memory(len: usize) -> GuestMemory {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).unwrap())
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
    use virtio_queue::QueueT as _;

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
        assert!(driver.queues[0].has_room(8), "all descriptors came back");
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
