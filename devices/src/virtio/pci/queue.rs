//! A queue as the driver configures it, before it becomes one that a device serves.

use thiserror::Error;
use virtio_queue::{Queue, QueueState};
use vm_memory::{GuestAddress, GuestMemory as _};

use crate::GuestMemory;

/// The largest queue of the split ring (virtio 1.2, 2.7).
pub const MAX_SIZE: u16 = 32768;

/// The registers of one queue in the common configuration structure.
#[derive(Clone, Copy, Debug)]
pub struct QueueConfig {
    /// What the device allows.
    pub max_size: u16,
    /// What the driver chose: a power of two of at most `max_size`.
    pub size: u16,
    /// Whether the driver has enabled it.
    pub enabled: bool,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring.
    pub available: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
}

/// How far the device has come in a queue.
#[derive(Clone, Copy, Debug, Default)]
pub struct Position {
    /// The next entry of the available ring to take.
    pub next_avail: u16,
    /// The next entry of the used ring to fill.
    pub next_used: u16,
}

/// Why a queue cannot be served.
#[derive(Debug, Error)]
pub enum QueueError {
    /// A ring is not in guest memory as a whole.
    #[error("the {ring} at {address:#x} is not in guest memory")]
    OutOfMemory {
        /// Which ring.
        ring: &'static str,
        /// Where it should begin.
        address: u64,
    },
    /// A ring's address or the size breaks the rules of the specification.
    #[error("the layout of the rings is invalid")]
    Layout(#[source] virtio_queue::Error),
}

impl QueueConfig {
    /// A disabled queue of `max_size`.
    pub fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            enabled: false,
            descriptors: 0,
            available: 0,
            used: 0,
        }
    }

    /// Takes the driver's choice of a size; an invalid one leaves the queue as it was.
    pub fn choose_size(&mut self, size: u16) {
        if size.is_power_of_two() && size <= self.max_size {
            self.size = size;
        }
    }

    /// The queue that a device serves, beginning at `position`.
    ///
    /// # Errors
    /// [`QueueError`] when its rings are not completely in `memory` or not aligned.
    pub fn activate(
        &self,
        memory: &GuestMemory,
        event_idx: bool,
        position: Position,
    ) -> Result<Queue, QueueError> {
        let size = usize::from(self.size);
        // Lengths of virtio 1.2, 2.7, with the event fields.
        let rings = [
            ("descriptor table", self.descriptors, 16 * size),
            ("available ring", self.available, 6 + 2 * size),
            ("used ring", self.used, 6 + 8 * size),
        ];
        for (ring, address, len) in rings {
            // Page 0 is no place for a ring; `virtio_queue` takes 0 for "not set".
            if address == 0 || !memory.check_range(GuestAddress(address), len) {
                return Err(QueueError::OutOfMemory { ring, address });
            }
        }
        let state = QueueState {
            max_size: self.max_size,
            next_avail: position.next_avail,
            next_used: position.next_used,
            event_idx_enabled: event_idx,
            size: self.size,
            ready: true,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
        };
        Queue::try_from(state).map_err(QueueError::Layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::guest_memory;

    const VALID: QueueConfig = QueueConfig {
        max_size: 256,
        size: 16,
        enabled: true,
        descriptors: 0x1000,
        available: 0x2000,
        used: 0x3000,
    };

    #[test]
    fn rings_may_end_with_memory_but_not_behind_it() {
        let memory = guest_memory(0x4000);
        let len = 6 + 8 * 16;
        let last = (0x4000 - len) & !3;
        let at = |used| QueueConfig { used, ..VALID }.activate(&memory, false, Position::default());
        assert!(at(last).is_ok());
        assert!(matches!(
            at(last + 4),
            Err(QueueError::OutOfMemory {
                ring: "used ring",
                ..
            })
        ));
        assert!(at(u64::MAX - 3).is_err());
    }

    #[test]
    fn unset_and_misaligned_rings_are_refused() {
        let memory = guest_memory(0x4000);
        for wrong in [
            QueueConfig {
                available: 0,
                ..VALID
            },
            QueueConfig {
                descriptors: 0x1008,
                ..VALID
            },
            QueueConfig {
                available: 0x2001,
                ..VALID
            },
            QueueConfig {
                used: 0x3002,
                ..VALID
            },
        ] {
            assert!(
                wrong.activate(&memory, false, Position::default()).is_err(),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn only_powers_of_two_up_to_the_maximum_are_sizes() {
        let mut queue = QueueConfig::new(256);
        for (size, expected) in [
            (128, 128),
            (0, 128),
            (96, 128),
            (512, 128),
            (1, 1),
            (256, 256),
        ] {
            queue.choose_size(size);
            assert_eq!(queue.size, expected);
        }
    }
}
