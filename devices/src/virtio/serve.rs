//! One round of work on a queue, for devices that answer each request at once.

use virtio_queue::{DescriptorChain, Error, QueueOwnedT as _, QueueT as _};
use vm_memory::GuestMemoryMmap;

use super::device::{QueueHandle, VirtioInterrupt};

/// Requests served in one round; after that the other devices of the thread have their turn.
const BUDGET: usize = 256;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// It is finished, with this many bytes written.
    Used(u32),
    /// It has to wait; the device asks for another round when it can go on.
    NotNow,
}

/// Serves the requests that are available and tells the driver. A queue that never becomes
/// empty is notified again for the next round.
///
/// # Errors
/// The rings are broken: the device needs a reset.
pub fn serve<'m>(
    handle: &mut QueueHandle,
    memory: &'m GuestMemoryMmap<()>,
    interrupt: &dyn VirtioInterrupt,
    mut request: impl FnMut(DescriptorChain<&'m GuestMemoryMmap<()>>) -> Served,
) -> Result<(), Error> {
    let mut left = BUDGET;
    let mut used = false;
    let queue = &mut handle.queue;
    'round: loop {
        queue.disable_notification(memory)?;
        while let Some(chain) = queue.iter(memory)?.next() {
            let head = chain.head_index();
            match request(chain) {
                Served::Used(len) => queue.add_used(memory, head, len)?,
                Served::NotNow => {
                    queue.set_next_avail(queue.next_avail().wrapping_sub(1));
                    break 'round;
                }
            }
            used = true;
            left -= 1;
            if left == 0 {
                // Fails only when the counter is full: then it is readable already.
                let _ = handle.notify.write(1);
                break 'round;
            }
        }
        if !queue.enable_notification(memory)? {
            break;
        }
    }
    if used && queue.needs_notification(memory)? {
        interrupt.queue(handle.index);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{RawDescriptor, TestDriver};

    fn round(
        driver: &TestDriver,
        handle: &mut QueueHandle,
        request: impl FnMut(DescriptorChain<&GuestMemoryMmap<()>>) -> Served,
    ) -> Result<(), Error> {
        serve(handle, &driver.memory, driver.interrupt.as_ref(), request)
    }

    #[test]
    fn all_requests_are_served_with_one_interrupt() {
        let mut driver = TestDriver::new(0x10000, &[8]);
        let mut handle = driver.queues[0].handle(0, false);
        let heads: Vec<u16> = (0..3).map(|_| driver.request(0, b"x", 1)).collect();
        round(&driver, &mut handle, |_| Served::Used(1)).unwrap();
        for head in heads {
            assert_eq!(driver.complete(0).head, head);
        }
        assert_eq!(driver.interrupt.seen().queues[&0], 1);
    }

    #[test]
    fn a_request_that_waits_is_offered_again() {
        let mut driver = TestDriver::new(0x10000, &[8]);
        let mut handle = driver.queues[0].handle(0, true);
        let head = driver.request(0, b"x", 0);
        round(&driver, &mut handle, |_| Served::NotNow).unwrap();
        assert!(driver.try_complete(0).is_none());
        round(&driver, &mut handle, |chain| {
            assert_eq!(chain.head_index(), head);
            Served::Used(0)
        })
        .unwrap();
        assert_eq!(driver.complete(0).head, head);
    }

    #[test]
    fn a_head_outside_of_the_table_and_an_impossible_index_break_the_queue() {
        let mut driver = TestDriver::new(0x10000, &[8]);
        let mut handle = driver.queues[0].handle(0, false);
        driver.queues[0].publish(8);
        assert!(round(&driver, &mut handle, |_| Served::Used(0)).is_err());
        driver.queues[0].set_avail_index(1000);
        assert!(round(&driver, &mut handle, |_| Served::Used(0)).is_err());
    }

    #[test]
    fn a_full_queue_leaves_the_thread_after_its_budget() {
        let mut driver = TestDriver::new(0x10000, &[512]);
        let mut handle = driver.queues[0].handle(0, false);
        driver.queues[0].write_descriptor(0, RawDescriptor::default());
        (0..512).for_each(|_| driver.queues[0].publish(0));
        let mut count = 0;
        round(&driver, &mut handle, |_| {
            count += 1;
            Served::Used(0)
        })
        .unwrap();
        assert_eq!(count, BUDGET);
        assert_eq!(handle.notify.read().unwrap(), 1, "asked for another round");
    }
}
