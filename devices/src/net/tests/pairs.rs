//! A card with several pairs of queues.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF};

use super::super::config::{MacAddress, NetConfig};
use super::super::device::{Net, QueuePair};
use super::{Socket, frame};
use crate::event_loop::EventLoop;
use crate::virtio::testing::TestDriver;
use crate::virtio::{Reset, VirtioDevice};

const CONTROL: usize = 6;
const FEATURES: u64 =
    1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MRG_RXBUF;

/// A card of three pairs, with the network's end of each.
fn card() -> (Net, Vec<Arc<Socket>>, Vec<UnixDatagram>) {
    let io = EventLoop::spawn("test-io", Box::new(|| Ok(()))).unwrap();
    let mac = MacAddress::try_from([2, 0, 0, 0, 0, 1]).unwrap();
    let (sockets, networks): (Vec<_>, Vec<_>) = (0..3).map(|_| Socket::pair()).unzip();
    let pairs = sockets
        .iter()
        .map(|socket| QueuePair::new(socket.clone()))
        .collect();
    let card = Net::new(NetConfig { mac, mtu: None }, pairs, io);
    (card, sockets, networks)
}

fn in_use(sockets: &[Arc<Socket>]) -> Vec<Option<bool>> {
    let states = sockets.iter();
    states
        .map(|socket| *socket.in_use.lock().unwrap())
        .collect()
}

fn command(driver: &mut TestDriver, bytes: &[u8]) -> u8 {
    driver.request(CONTROL, bytes, 1);
    driver.complete(CONTROL).writable[0]
}

#[test]
fn the_driver_says_how_many_pairs_it_uses() {
    let (mut card, sockets, networks) = card();
    assert_eq!(card.device_features() & FEATURES, FEATURES);
    let mut pairs = [0; 2];
    card.read_config(8, &mut pairs);
    assert_eq!(pairs, [3, 0]);
    let mut driver = TestDriver::new(16 << 20, &vec![64; card.queue_max_sizes().len()]);
    driver.start(&mut card, FEATURES);

    assert_eq!(command(&mut driver, &[4, 0, 2, 0]), 0);
    let two = [Some(true), Some(true), Some(false)];
    assert_eq!(in_use(&sockets), two);
    // None, too many, a command of another kind, and half of one.
    for wrong in [&[4, 0, 0, 0][..], &[4, 0, 4, 0], &[1, 0, 1, 0], &[4, 0]] {
        assert_eq!(command(&mut driver, wrong), 1, "{wrong:?}");
    }
    assert_eq!(in_use(&sockets), two);

    for (pair, network) in networks.iter().enumerate().take(2) {
        driver.request(2 * pair, &[], 2048);
        let sent = frame(pair, 600);
        network.send(&sent).unwrap();
        assert_eq!(driver.complete(2 * pair).len as usize, sent.len());
        driver.request(2 * pair + 1, &sent, 0);
        driver.complete(2 * pair + 1);
        let mut buffer = [0; 2048];
        let len = network.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..len], sent);
    }

    // What was saved holds after a reset, and in another card.
    let state = card.save();
    let indices: Vec<u16> = card.deactivate().iter().map(|queue| queue.index).collect();
    assert_eq!(indices, [0, 1, 2, 3, 4, 5, 6]);
    card.reset(Reset::Driver);
    assert_eq!(in_use(&sockets), [Some(true), Some(false), Some(false)]);
    card.restore(&state).unwrap();
    assert_eq!(in_use(&sockets), two);
}

#[test]
fn a_driver_of_one_pair_finds_the_control_queue_behind_it() {
    let (mut card, _sockets, networks) = card();
    let mut driver = TestDriver::new(16 << 20, &[64; 3]);
    driver.start(&mut card, FEATURES & !(1 << VIRTIO_NET_F_MQ));
    driver.request(2, &[1, 0, 1], 1);
    assert_eq!(driver.complete(2).writable[0], 1);
    driver.request(0, &[], 2048);
    networks[0].send(&frame(0, 100)).unwrap();
    driver.complete(0);
}
