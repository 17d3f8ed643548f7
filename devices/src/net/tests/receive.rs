//! Receive buffers alone: whatever a driver posts, frames arrive whole or not at all.

use proptest::prelude::*;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress};

use super::super::HEADER_LEN;
use super::super::metrics::NetMetrics;
use super::super::receive::{ReceiveBuffers, Received};
use super::frame;
use crate::virtio::testing::{Buffer, TestDriver};

struct Bench {
    driver: TestDriver,
    queue: Queue,
    buffers: ReceiveBuffers,
    metrics: NetMetrics,
    card: UnixDatagram,
    network: UnixDatagram,
    posted: std::collections::VecDeque<(u16, Vec<Buffer>)>,
}

impl Bench {
    fn new(merges: bool) -> Self {
        let driver = TestDriver::new(16 << 20, &[256]);
        let queue = driver.queues[0].handle(0, true).queue;
        let (card, network) = UnixDatagram::pair().unwrap();
        card.set_nonblocking(true).unwrap();
        Self {
            buffers: ReceiveBuffers::new(driver.memory.clone(), merges),
            driver,
            queue,
            metrics: NetMetrics::default(),
            card,
            network,
            posted: std::collections::VecDeque::new(),
        }
    }

    /// Posts a chain of buffers of these lengths.
    fn post(&mut self, lens: &[u32]) {
        let buffers: Vec<_> = lens
            .iter()
            .map(|&len| {
                let address = self.driver.allocate(u64::from(len), 1);
                Buffer {
                    address,
                    len,
                    writable: true,
                }
            })
            .collect();
        let head = self.driver.queues[0].add(&buffers);
        self.posted.push_back((head, buffers));
    }

    fn receive(&mut self) -> Received {
        self.buffers.refill(&mut self.queue, &self.metrics).unwrap();
        self.buffers
            .receive(self.card.as_fd(), &mut self.queue)
            .unwrap()
            .unwrap()
    }

    /// The next frame as the driver finds it, and in how many chains.
    fn take(&mut self) -> Option<(Vec<u8>, u16)> {
        let mut frame = Vec::new();
        let mut chains = 0;
        let mut announced = 1;
        while chains < announced {
            let used = self.driver.queues[0].used()?;
            let (head, buffers) = self.posted.pop_front().unwrap();
            assert_eq!(used.head, head, "buffers are used in order");
            let mut rest = used.len as usize;
            for buffer in buffers {
                let mut part = vec![0; rest.min(buffer.len as usize)];
                self.driver
                    .memory
                    .read_slice(&mut part, GuestAddress(buffer.address))
                    .unwrap();
                rest -= part.len();
                frame.extend(part);
            }
            assert_eq!(rest, 0);
            if chains == 0 {
                announced = u16::from_le_bytes([frame[10], frame[11]]);
            }
            chains += 1;
        }
        Some((frame, chains))
    }

    /// Sends a frame through and compares what arrives.
    fn check(&mut self, seed: usize, len: usize) -> u16 {
        let sent = frame(seed, len);
        self.network.send(&sent).unwrap();
        assert_eq!(self.receive(), Received::Frame(len));
        let (mut arrived, chains) = self.take().unwrap();
        arrived[10..HEADER_LEN].fill(0);
        assert!(
            arrived == sent,
            "frame {seed} of {len} bytes came out different"
        );
        chains
    }
}

#[test]
fn a_long_frame_fills_as_many_buffers_as_it_needs() {
    let mut bench = Bench::new(true);
    for _ in 0..60 {
        bench.post(&[1536]);
    }
    assert_eq!(bench.check(1, 100), 1);
    assert_eq!(bench.check(2, 1524), 1);
    assert_eq!(bench.check(3, 1525), 2);
    assert_eq!(bench.check(4, 65535), 43);
    assert_eq!(bench.check(5, 60), 1);
}

#[test]
fn without_merging_a_frame_has_one_chain_or_is_dropped() {
    let mut bench = Bench::new(false);
    bench.post(&[12, 1000]);
    bench.post(&[2000]);
    assert_eq!(bench.check(1, 1000), 1);
    bench.network.send(&frame(2, 1989)).unwrap();
    assert_eq!(bench.receive(), Received::TooLong);
    assert_eq!(bench.check(3, 1988), 1);
}

#[test]
fn a_frame_longer_than_all_buffers_is_dropped_and_the_next_arrives() {
    let mut bench = Bench::new(true);
    bench.post(&[100]);
    bench.post(&[100]);
    bench.network.send(&frame(1, 189)).unwrap();
    assert_eq!(bench.receive(), Received::TooLong);
    assert_eq!(bench.check(2, 188), 2);
}

#[test]
fn buffers_given_back_are_taken_again_in_order() {
    let mut bench = Bench::new(true);
    for _ in 0..4 {
        bench.post(&[500]);
    }
    bench.check(1, 100);
    bench.buffers.give_back(&mut bench.queue);
    bench.buffers = ReceiveBuffers::new(bench.driver.memory.clone(), true);
    assert_eq!(bench.check(2, 900), 2);
}

#[test]
fn more_pieces_than_the_kernel_takes_at_once_are_used_in_rounds() {
    let mut bench = Bench::new(true);
    for _ in 0..30 {
        // An indirect table, so that the queue has room for them.
        let buffers: Vec<_> = (0..60)
            .map(|_| {
                let address = bench.driver.allocate(10, 1);
                Buffer {
                    address,
                    len: 10,
                    writable: true,
                }
            })
            .collect();
        let table = bench.driver.allocate(16 * 60, 16);
        let head = bench.driver.queues[0].add_indirect(&buffers, table);
        bench.posted.push_back((head, buffers));
    }
    for seed in 0..6 {
        bench.check(seed, 2500);
    }
}

#[test]
fn one_chain_of_too_many_pieces_goes_back() {
    let mut bench = Bench::new(true);
    let buffers = vec![
        Buffer {
            address: 0x10_0000,
            len: 10,
            writable: true
        };
        1024
    ];
    let table = bench.driver.allocate(16 * 1024, 16);
    bench.driver.queues[0].add_indirect(&buffers, table);
    bench
        .buffers
        .refill(&mut bench.queue, &bench.metrics)
        .unwrap();
    assert!(bench.buffers.is_empty());
    assert_eq!(bench.driver.queues[0].used().unwrap().len, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn frames_arrive_whole_in_buffers_of_any_shape(
        chains in prop::collection::vec(prop::collection::vec(0..3000_u32, 1..4), 1..60),
        frames in prop::collection::vec(1..20_000_usize, 1..20),
    ) {
        let mut bench = Bench::new(true);
        let mut space = 0;
        for lens in chains {
            let len: u32 = lens.iter().sum();
            if len as usize >= HEADER_LEN {
                bench.post(&lens);
                space += len as usize;
            }
        }
        for (seed, len) in frames.into_iter().enumerate() {
            if HEADER_LEN + len > space {
                break;
            }
            let before: usize = bench.posted.iter().flat_map(|(_, b)| b).map(|b| b.len as usize).sum();
            bench.check(seed, len);
            let after: usize = bench.posted.iter().flat_map(|(_, b)| b).map(|b| b.len as usize).sum();
            space -= before - after;
        }
    }
}
