//! The whole card: the `io` thread between a driver's queues and the network.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};
use vm_memory::{Bytes, GuestAddress};

use super::super::HEADER_LEN;
use super::super::backend::Offloads;
use super::super::config::{MacAddress, Mtu, NetConfig};
use super::super::device::{Net, QueuePair};
use super::{Socket, frame};
use crate::event_loop::EventLoop;
use crate::virtio::VirtioDevice;
use crate::virtio::testing::{Buffer, RawDescriptor, TIMEOUT, TestDriver};

const RX: usize = 0;
const TX: usize = 1;
const EVENT_IDX: u64 = 1 << 29;
const FEATURES: u64 = EVENT_IDX | 1 << VIRTIO_NET_F_MRG_RXBUF;

fn config(mtu: Option<u16>) -> NetConfig {
    NetConfig {
        mac: MacAddress::try_from([2, 0, 0, 0, 0, 1]).unwrap(),
        mtu: mtu.map(|mtu| Mtu::try_from(mtu).unwrap()),
    }
}

fn card() -> (Net, Arc<Socket>, UnixDatagram) {
    let io = EventLoop::spawn("test-io", Box::new(|| Ok(()))).unwrap();
    let (socket, network) = Socket::pair();
    let pair = QueuePair::new(socket.clone());
    (Net::new(config(None), vec![pair], io), socket, network)
}

fn driver() -> TestDriver {
    TestDriver::new(16 << 20, &[64, 64])
}

fn started(card: &mut Net) -> TestDriver {
    let driver = driver();
    driver.start(card, FEATURES);
    driver
}

/// Waits for a frame on the network's side.
fn next_frame(network: &UnixDatagram) -> Vec<u8> {
    let mut buffer = vec![0; 70_000];
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match network.recv(&mut buffer) {
            Ok(len) => return buffer[..len].to_vec(),
            Err(_) => assert!(Instant::now() < deadline, "no frame came"),
        }
        thread::sleep(Duration::from_micros(100));
    }
}

#[test]
fn an_mtu_is_offered_only_when_there_is_one() {
    let (card, ..) = card();
    assert_eq!(card.device_features() >> VIRTIO_NET_F_MTU & 1, 0);
    let io = EventLoop::spawn("test-io", Box::new(|| Ok(()))).unwrap();
    let card = Net::new(
        config(Some(1400)),
        vec![QueuePair::new(Socket::pair().0)],
        io,
    );
    assert_eq!(card.device_features() >> VIRTIO_NET_F_MTU & 1, 1);
    let mut space = [0xff; 16];
    card.read_config(4, &mut space);
    assert_eq!(space[..9], [0, 1, 1, 0, 1, 0, 0x78, 5, 0]);
    card.read_config(u64::MAX, &mut space);
    assert_eq!(space, [0; 16]);
}

#[test]
fn the_tap_leaves_to_the_guest_what_its_driver_accepted() {
    let bit = |bit: u32| 1_u64 << bit;
    let all = Offloads {
        checksum: true,
        tso4: true,
        tso6: true,
        ecn: true,
    };
    let tso = bit(VIRTIO_NET_F_GUEST_TSO4) | bit(VIRTIO_NET_F_GUEST_TSO6);
    let ecn = bit(VIRTIO_NET_F_GUEST_ECN);
    for (features, expected) in [
        (0, Offloads::default()),
        (tso | ecn, Offloads::default()),
        (
            bit(VIRTIO_NET_F_GUEST_CSUM) | ecn,
            Offloads {
                checksum: true,
                ..Offloads::default()
            },
        ),
        (bit(VIRTIO_NET_F_GUEST_CSUM) | tso | ecn, all),
    ] {
        let (mut card, socket, _network) = card();
        driver().start(&mut card, features);
        assert_eq!(
            *socket.offloads.lock().unwrap(),
            Some(expected),
            "{features:#x}"
        );
    }
}

#[test]
fn frames_go_both_ways() {
    let (mut card, _socket, network) = card();
    let mut driver = started(&mut card);
    driver.request(RX, &[], 2048);
    let sent = frame(1, 1000);
    network.send(&sent).unwrap();
    let received = driver.complete(RX);
    assert_eq!(received.len as usize, sent.len());
    assert_eq!(received.writable[..10], sent[..10]);
    assert_eq!(received.writable[10..HEADER_LEN], [1, 0], "one buffer");
    assert_eq!(
        received.writable[HEADER_LEN..sent.len()],
        sent[HEADER_LEN..]
    );

    let sent = frame(2, 1500);
    driver.request(TX, &sent, 0);
    assert_eq!(next_frame(&network), sent);
    assert_eq!(driver.complete(TX).len, 0);
    let metrics = card.metrics();
    assert_eq!(metrics.received_bytes.load(Ordering::Relaxed), 1000);
    assert_eq!(metrics.transmitted_bytes.load(Ordering::Relaxed), 1500);
}

#[test]
fn frames_wait_for_a_guest_without_buffers() {
    let (mut card, _socket, network) = card();
    let mut driver = started(&mut card);
    for seed in 0..3 {
        network.send(&frame(seed, 100)).unwrap();
    }
    let metrics = card.metrics();
    let deadline = Instant::now() + TIMEOUT;
    while metrics.receive_stalls.load(Ordering::Relaxed) == 0 {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
    thread::sleep(Duration::from_millis(10));
    assert!(
        metrics.receive_stalls.load(Ordering::Relaxed) < 3,
        "it waits, it does not spin"
    );
    for seed in 0..3 {
        driver.request(RX, &[], 2048);
        let received = driver.complete(RX);
        assert_eq!(
            received.writable[HEADER_LEN..HEADER_LEN + 100],
            frame(seed, 100)[HEADER_LEN..]
        );
    }
}

#[test]
fn frames_wait_for_a_network_that_is_busy() {
    let (mut card, _socket, network) = card();
    let mut driver = started(&mut card);
    // More than a socket queues.
    for seed in 0..60 {
        driver.request(TX, &frame(seed, 1000), 0);
    }
    thread::sleep(Duration::from_millis(20));
    for seed in 0..60 {
        assert!(next_frame(&network) == frame(seed, 1000), "frame {seed}");
    }
    for _ in 0..60 {
        driver.complete(TX);
    }
    assert_eq!(card.metrics().transmit_drops.load(Ordering::Relaxed), 0);
}

#[test]
fn ten_thousand_frames_arrive_in_order() {
    const FRAMES: usize = 10_000;
    let (mut card, _socket, network) = card();
    let mut driver = started(&mut card);
    let address = driver.allocate(32 * 2048, 16);
    let sender = thread::spawn(move || {
        network.set_nonblocking(false).unwrap();
        for seed in 0..FRAMES {
            network.send(&frame(seed, 60 + seed % 1400)).unwrap();
        }
        network
    });
    let buffer = |slot: usize| Buffer {
        address: address + 2048 * slot as u64,
        len: 2048,
        writable: true,
    };
    let mut slots = std::collections::HashMap::new();
    for slot in 0..32 {
        slots.insert(driver.queues[RX].add(&[buffer(slot)]), slot);
    }
    driver.queues[RX].kick();
    let deadline = Instant::now() + TIMEOUT;
    let mut seed = 0;
    while seed < FRAMES {
        let Some(used) = driver.queues[RX].used() else {
            assert!(Instant::now() < deadline);
            thread::yield_now();
            continue;
        };
        let slot = slots.remove(&used.head).unwrap();
        let mut arrived = vec![0; used.len as usize];
        driver
            .memory
            .read_slice(&mut arrived, GuestAddress(buffer(slot).address))
            .unwrap();
        assert!(arrived[HEADER_LEN..] == frame(seed, 60 + seed % 1400)[HEADER_LEN..]);
        seed += 1;
        slots.insert(driver.queues[RX].add(&[buffer(slot)]), slot);
        driver.queues[RX].kick();
    }
    sender.join().unwrap();
}

#[test]
fn malformed_chains_come_back_unused_and_the_card_goes_on() {
    let (mut card, _socket, network) = card();
    let mut driver = driver();
    let queue = &mut driver.queues[TX];
    // No frame after the header, writable, outside memory, longer than any frame, a loop.
    queue.add(&[Buffer {
        address: 0x10_0000,
        len: 12,
        writable: false,
    }]);
    queue.add(&[Buffer {
        address: 0x10_0000,
        len: 100,
        writable: true,
    }]);
    queue.add(&[Buffer {
        address: 1 << 40,
        len: 100,
        writable: false,
    }]);
    queue.add(&[Buffer {
        address: 0x10_0000,
        len: 70_000,
        writable: false,
    }]);
    queue.write_descriptor(
        60,
        RawDescriptor {
            address: 0x10_0000,
            len: 1 << 12,
            flags: 1,
            next: 60,
        },
    );
    queue.publish(60);
    let queue = &mut driver.queues[RX];
    // Too short for a header, readable, outside memory.
    queue.add(&[Buffer {
        address: 0x10_0000,
        len: 11,
        writable: true,
    }]);
    queue.add(&[Buffer {
        address: 0x10_0000,
        len: 2048,
        writable: false,
    }]);
    queue.add(&[Buffer {
        address: u64::MAX - 8,
        len: 2048,
        writable: true,
    }]);
    driver.start(&mut card, FEATURES);
    driver.queues[TX].kick();
    driver.queues[RX].kick();
    driver.request(RX, &[], 2048);
    for _ in 0..5 {
        assert_eq!(driver.complete(TX).len, 0);
    }
    network.send(&frame(1, 100)).unwrap();
    for _ in 0..3 {
        assert_eq!(driver.complete(RX).len, 0);
    }
    assert_eq!(driver.complete(RX).len, 112);
    driver.request(TX, &frame(2, 100), 0);
    assert_eq!(next_frame(&network), frame(2, 100));
    assert_eq!(card.metrics().malformed_buffers.load(Ordering::Relaxed), 8);
    assert!(driver.interrupt.seen().needs_reset.is_empty());
}

#[test]
fn a_broken_ring_asks_for_a_reset() {
    for queue in [RX, TX] {
        let (mut card, _socket, _network) = card();
        let mut driver = started(&mut card);
        driver.queues[queue].set_avail_index(1000);
        driver.queues[queue].kick();
        driver
            .interrupt
            .wait_until(|seen| !seen.needs_reset.is_empty());
    }
}

#[test]
fn a_paused_card_goes_on_where_it_was() {
    let (mut card, _socket, network) = card();
    let mut driver = started(&mut card);
    for _ in 0..3 {
        driver.request(RX, &[], 2048);
    }
    network.send(&frame(1, 100)).unwrap();
    assert_eq!(driver.complete(RX).len, 112);
    let queues = card.deactivate();
    assert_eq!(
        queues.iter().map(|handle| handle.index).collect::<Vec<_>>(),
        [0, 1]
    );
    network.send(&frame(2, 200)).unwrap();
    thread::sleep(Duration::from_millis(10));
    assert_eq!(
        driver.try_complete(RX),
        None,
        "nothing is written while it is paused"
    );
    let mut activation = driver.activation(FEATURES);
    activation.queues = queues;
    card.activate(activation).unwrap();
    assert_eq!(driver.complete(RX).len, 212);
    network.send(&frame(3, 300)).unwrap();
    assert_eq!(driver.complete(RX).len, 312);
}

#[test]
fn a_backend_that_is_gone_leaves_the_card_without_frames() {
    let (mut card, _socket, network) = card();
    let mut driver = started(&mut card);
    driver.request(RX, &[], 2048);
    drop(network);
    driver.request(TX, &frame(1, 100), 0);
    driver.complete(TX);
    assert_eq!(card.metrics().transmit_drops.load(Ordering::Relaxed), 1);
    assert_eq!(card.deactivate().len(), 2);
}

#[test]
fn a_driver_without_interrupt_needs_is_not_interrupted() {
    let (mut card, _socket, network) = card();
    let mut driver = driver();
    driver.queues[RX].set_used_event(0x8000);
    driver.queues[TX].set_used_event(0);
    driver.start(&mut card, FEATURES);
    driver.request(RX, &[], 2048);
    network.send(&frame(1, 100)).unwrap();
    driver.complete(RX);
    driver.request(TX, &frame(1, 100), 0);
    driver.complete(TX);
    driver
        .interrupt
        .wait_until(|seen| seen.queues.get(&1) == Some(&1));
    assert_eq!(driver.interrupt.seen().queues.get(&0), None);
}
