//! A descriptor chain taken apart and checked: what the device may read, what it may write.
//!
//! `virtio_queue` ends a chain silently where it is malformed. Here a chain is whole or it
//! is an error, and no guest makes one longer than its device allows.

use std::ops::Deref;

use thiserror::Error;
use virtio_queue::DescriptorChain;
use vm_memory::{Address as _, Bytes as _, GuestAddress, GuestMemory as _, GuestMemoryMmap};

/// Why a chain cannot be served; the request fails, the queue goes on.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ChainError {
    /// It is empty, loops, leads out of its table, or nests indirect tables.
    #[error("the chain is broken")]
    Broken,
    /// It has more buffers than the device takes.
    #[error("the chain is too long")]
    TooLong,
    /// A buffer is not in guest memory.
    #[error("a buffer is not in guest memory")]
    OutOfMemory,
    /// A buffer to read follows one to write (virtio 1.2, 2.7.4.2).
    #[error("the buffers are in the wrong order")]
    Order,
    /// There are fewer bytes than the request needs.
    #[error("the buffers are too short")]
    TooShort,
}

/// A piece of guest memory, which lies there as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRange {
    /// Guest-physical address.
    pub address: GuestAddress,
    /// Length in bytes.
    pub len: usize,
}

/// Buffers that together are one run of bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buffers {
    ranges: Vec<GuestRange>,
    len: u64,
}

impl Buffers {
    /// Length of all buffers together, in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no byte in them.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The buffers, in order.
    #[must_use]
    pub fn ranges(&self) -> &[GuestRange] {
        &self.ranges
    }

    /// Cuts the buffers after `at` bytes: what is before and what is behind.
    ///
    /// # Errors
    /// [`ChainError::TooShort`] when there are fewer bytes.
    pub fn split_at(self, at: u64) -> Result<(Self, Self), ChainError> {
        let mut rest = usize::try_from(at).map_err(|_| ChainError::TooShort)?;
        if at > self.len {
            return Err(ChainError::TooShort);
        }
        let (mut front, mut back) = (Self::default(), Self::default());
        for range in self.ranges {
            let before = range.len.min(rest);
            rest -= before;
            front.push(GuestRange {
                len: before,
                ..range
            });
            // The range lies in memory as a whole: its middle cannot overflow.
            let address = range.address.unchecked_add(before as u64);
            back.push(GuestRange {
                address,
                len: range.len - before,
            });
        }
        Ok((front, back))
    }

    /// Reads as many bytes as `data` has from the beginning.
    ///
    /// # Errors
    /// [`ChainError::TooShort`] when there are fewer bytes.
    pub fn read(&self, memory: &GuestMemoryMmap<()>, data: &mut [u8]) -> Result<(), ChainError> {
        let mut rest = data;
        for range in &self.ranges {
            let (now, later) = rest.split_at_mut(range.len.min(rest.len()));
            memory
                .read_slice(now, range.address)
                .map_err(|_| ChainError::OutOfMemory)?;
            rest = later;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(ChainError::TooShort)
        }
    }

    /// Writes `data` to the beginning.
    ///
    /// # Errors
    /// [`ChainError::TooShort`] when there is not enough room.
    pub fn write(&self, memory: &GuestMemoryMmap<()>, data: &[u8]) -> Result<(), ChainError> {
        let mut rest = data;
        for range in &self.ranges {
            let (now, later) = rest.split_at(range.len.min(rest.len()));
            memory
                .write_slice(now, range.address)
                .map_err(|_| ChainError::OutOfMemory)?;
            rest = later;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(ChainError::TooShort)
        }
    }

    fn push(&mut self, range: GuestRange) {
        if range.len > 0 {
            self.ranges.push(range);
            self.len += range.len as u64;
        }
    }
}

/// A chain's buffers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// What the driver wrote for the device.
    pub readable: Buffers,
    /// Where the device writes for the driver.
    pub writable: Buffers,
}

impl Parts {
    /// Takes `chain` apart; `max_buffers` bounds what a guest makes the host keep.
    ///
    /// # Errors
    /// [`ChainError`] when it is not a chain that can be served.
    pub fn of<M>(chain: DescriptorChain<M>, max_buffers: usize) -> Result<Self, ChainError>
    where
        M: Deref<Target = GuestMemoryMmap<()>> + Clone,
    {
        let mut parts = Self::default();
        let mut goes_on = true;
        let mut writing = false;
        for (position, descriptor) in chain.clone().enumerate() {
            if position == max_buffers {
                return Err(ChainError::TooLong);
            }
            let len = usize::try_from(descriptor.len()).map_err(|_| ChainError::OutOfMemory)?;
            let range = GuestRange {
                address: descriptor.addr(),
                len,
            };
            if len > 0 && !chain.memory().check_range(range.address, len) {
                return Err(ChainError::OutOfMemory);
            }
            match (writing, descriptor.is_write_only()) {
                (true, false) => return Err(ChainError::Order),
                (_, true) => {
                    writing = true;
                    parts.writable.push(range);
                }
                (false, false) => parts.readable.push(range),
            }
            goes_on = descriptor.has_next();
        }
        // The iterator ended although its last descriptor, or the head, led on.
        if goes_on {
            Err(ChainError::Broken)
        } else {
            Ok(parts)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_queue::QueueT as _;

    use super::*;
    use crate::virtio::testing::{Buffer, INDIRECT, NEXT, RawDescriptor, TestDriver, WRITE};

    const MAX: usize = 4;

    fn parts_of(driver: &TestDriver) -> Result<Parts, ChainError> {
        let mut queue = driver.queues[0].handle(0, false).queue;
        let chain = queue.pop_descriptor_chain(driver.memory.as_ref()).unwrap();
        Parts::of(chain, MAX)
    }

    fn parts_of_raw(descriptors: &[RawDescriptor], head: u16) -> Result<Parts, ChainError> {
        let mut driver = TestDriver::new(0x10000, &[8]);
        for (index, descriptor) in (0..).zip(descriptors) {
            driver.queues[0].write_descriptor(index, *descriptor);
        }
        driver.queues[0].publish(head);
        parts_of(&driver)
    }

    fn raw(address: u64, len: u32, flags: u16, next: u16) -> RawDescriptor {
        RawDescriptor {
            address,
            len,
            flags,
            next,
        }
    }

    #[test]
    fn a_good_chain_comes_apart_in_order_and_without_empty_buffers() {
        let mut driver = TestDriver::new(0x10000, &[8]);
        let buffer = |address, len, writable| Buffer {
            address,
            len,
            writable,
        };
        driver.queues[0].add(&[
            buffer(0x8000, 3, false),
            buffer(u64::MAX, 0, false),
            buffer(0x9000, 5, true),
            buffer(0xa000, 6, true),
        ]);
        let parts = parts_of(&driver).unwrap();
        assert_eq!((parts.readable.len(), parts.writable.len()), (3, 11));
        let (front, back) = parts.writable.split_at(7).unwrap();
        front.write(&driver.memory, b"abcdefg").unwrap();
        back.write(&driver.memory, b"hijk").unwrap();
        assert_eq!(
            back.write(&driver.memory, b"hijkl"),
            Err(ChainError::TooShort)
        );
        let mut bytes = [0; 6];
        driver
            .memory
            .read_slice(&mut bytes, GuestAddress(0xa000))
            .unwrap();
        assert_eq!(&bytes, b"fghijk");
        assert!(back.split_at(5).is_err());
    }

    #[test]
    fn malformed_chains_are_errors() {
        let cases: [(&[RawDescriptor], u16, ChainError); 9] = [
            (&[raw(0x8000, 8, NEXT, 0)], 0, ChainError::TooLong),
            (&[raw(0x8000, 8, NEXT, 99)], 0, ChainError::Broken),
            (&[raw(0x8000, 8, 0, 0)], 99, ChainError::Broken),
            (&[raw(0xfff8, 16, 0, 0)], 0, ChainError::OutOfMemory),
            (&[raw(u64::MAX, 2, 0, 0)], 0, ChainError::OutOfMemory),
            (
                &[raw(0x8000, 1, WRITE | NEXT, 1), raw(0x8000, 1, 0, 0)],
                0,
                ChainError::Order,
            ),
            (&[raw(0x8000, 15, INDIRECT, 0)], 0, ChainError::Broken),
            (&[raw(0xffff_0000, 32, INDIRECT, 0)], 0, ChainError::Broken),
            // An indirect table in memory that is zero: its one descriptor is empty.
            (
                &[raw(0x8000, 8, NEXT, 1), raw(0x9000, 0, INDIRECT, 0)],
                0,
                ChainError::Broken,
            ),
        ];
        for (descriptors, head, expected) in cases {
            assert_eq!(
                parts_of_raw(descriptors, head),
                Err(expected),
                "{descriptors:?}"
            );
        }
    }

    #[test]
    fn a_loop_shorter_than_the_limit_ends() {
        let mut driver = TestDriver::new(0x10000, &[2]);
        driver.queues[0].write_descriptor(0, raw(0x8000, 8, NEXT, 1));
        driver.queues[0].write_descriptor(1, raw(0x8000, 8, NEXT, 0));
        driver.queues[0].publish(0);
        assert_eq!(parts_of(&driver), Err(ChainError::Broken));
    }

    proptest! {
        #[test]
        fn any_table_of_descriptors_is_a_chain_in_memory_or_an_error(
            table in prop::collection::vec(
                (0_u64..0x12000, 0_u32..0x3000, 0_u16..8, 0_u16..10), 8),
            head in 0_u16..10,
        ) {
            let raw: Vec<_> = table.iter().map(|&(a, l, f, n)| raw(a, l, f, n)).collect();
            if let Ok(parts) = parts_of_raw(&raw, head) {
                let all = parts.readable.ranges().iter().chain(parts.writable.ranges());
                prop_assert!(all.clone().count() <= MAX);
                for range in all {
                    prop_assert!(range.address.0 + range.len as u64 <= 0x10000);
                }
            }
        }
    }
}
