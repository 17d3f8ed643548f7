//! Using several buffers at once.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, Le32};

/// Offset of the ring in the available and the used area (virtio 1.2, 2.7.6 and 2.7.8).
const RING_OFFSET: u64 = 4;
const INDEX_OFFSET: u64 = 2;

/// Puts `buffers` (head, bytes written) into the used ring so that the driver sees all of them
/// or none: it takes the parts of a merged frame together (5.1.6.4.1).
///
/// # Errors
/// When a head is none of the queue's, or the ring is not in memory.
pub fn add_used(
    queue: &mut Queue,
    memory: &GuestMemoryMmap<()>,
    buffers: &[(u16, u32)],
) -> Result<(), Error> {
    let mut index = queue.next_used();
    for &(head, len) in buffers {
        if head >= queue.size() {
            return Err(Error::InvalidDescriptorIndex);
        }
        let slot = index.checked_rem(queue.size()).ok_or(Error::InvalidSize)?;
        let element = RING_OFFSET + 8 * u64::from(slot);
        let id = address(queue.used_ring(), element)?;
        memory
            .write_obj(Le32::from(u32::from(head)), id)
            .map_err(Error::GuestMemory)?;
        let written = address(queue.used_ring(), element + 4)?;
        memory
            .write_obj(Le32::from(len), written)
            .map_err(Error::GuestMemory)?;
        index = index.wrapping_add(1);
    }
    let at = address(queue.used_ring(), INDEX_OFFSET)?;
    memory
        .store(index.to_le(), at, Ordering::Release)
        .map_err(Error::GuestMemory)?;
    queue.set_next_used(index);
    Ok(())
}

/// Whether the driver wants to be interrupted for the buffers used since the ring stood at
/// `old` (2.7.7.2). The queue's own answer counts only what it added itself.
///
/// # Errors
/// When the ring is not in memory.
pub fn needs_interrupt(
    queue: &Queue,
    memory: &GuestMemoryMmap<()>,
    old: u16,
) -> Result<bool, Error> {
    let new = queue.next_used();
    if new == old {
        return Ok(false);
    }
    // What was used has to be visible before the driver's wish is read.
    fence(Ordering::SeqCst);
    let load = |offset| {
        let at = address(queue.avail_ring(), offset)?;
        memory
            .load(at, Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(Error::GuestMemory)
    };
    if queue.event_idx_enabled() {
        let event = load(RING_OFFSET + 2 * u64::from(queue.size()))?;
        return Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old));
    }
    // VIRTQ_AVAIL_F_NO_INTERRUPT.
    Ok(load(0)? & 1 == 0)
}

fn address(base: u64, offset: u64) -> Result<GuestAddress, Error> {
    base.checked_add(offset)
        .map(GuestAddress)
        .ok_or(Error::AddressOverflow)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Buffer, TestDriver, Used};

    fn posted(count: u16, event_idx: bool) -> (TestDriver, Queue) {
        let mut driver = TestDriver::new(0x10000, &[4]);
        for _ in 0..count {
            driver.queues[0].add(&[Buffer {
                address: 0x8000,
                len: 16,
                writable: true,
            }]);
        }
        let queue = driver.queues[0].handle(0, event_idx).queue;
        (driver, queue)
    }

    #[test]
    fn buffers_are_used_in_order_across_the_end_of_the_ring() {
        let (mut driver, mut queue) = posted(0, false);
        for _ in 0..5 {
            let buffer = Buffer {
                address: 0x8000,
                len: 16,
                writable: true,
            };
            let heads = [(); 3].map(|()| driver.queues[0].add(&[buffer]));
            let used = heads.map(|head| (head, u32::from(head) + 1));
            add_used(&mut queue, &driver.memory, &used).unwrap();
            for (head, len) in used {
                assert_eq!(driver.queues[0].used(), Some(Used { head, len }));
            }
            assert_eq!(driver.queues[0].used(), None);
        }
    }

    #[test]
    fn a_head_beyond_the_queue_publishes_nothing() {
        let (mut driver, mut queue) = posted(1, false);
        assert!(add_used(&mut queue, &driver.memory, &[(0, 1), (4, 1)]).is_err());
        assert_eq!(driver.queues[0].used(), None);
    }

    #[test]
    fn the_driver_says_when_it_wants_an_interrupt() {
        let (driver, mut queue) = posted(3, true);
        let memory = &*driver.memory;
        assert!(
            !needs_interrupt(&queue, memory, 0).unwrap(),
            "nothing was used"
        );
        driver.queues[0].set_used_event(2);
        add_used(&mut queue, memory, &[(0, 1), (1, 1)]).unwrap();
        assert!(!needs_interrupt(&queue, memory, 0).unwrap());
        add_used(&mut queue, memory, &[(2, 1)]).unwrap();
        assert!(needs_interrupt(&queue, memory, 2).unwrap());
        assert!(needs_interrupt(&queue, memory, 0).unwrap());

        let (driver, mut queue) = posted(1, false);
        let memory = &*driver.memory;
        add_used(&mut queue, memory, &[(0, 1)]).unwrap();
        assert!(needs_interrupt(&queue, memory, 0).unwrap());
        memory
            .write_obj(1_u16, GuestAddress(queue.avail_ring()))
            .unwrap();
        assert!(!needs_interrupt(&queue, memory, 0).unwrap());
    }
}
