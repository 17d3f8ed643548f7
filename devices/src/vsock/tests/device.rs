//! The whole device: tasks of the host, the `io` thread, and a driver's queues.

use std::io::ErrorKind;
use std::thread;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress, Le32};

use super::super::credit::RECEIVE_WINDOW;
use super::super::packet::{Header, Op, Ports, SHUTDOWN_BOTH, SHUTDOWN_SEND};
use super::super::testing::{
    EVENT_IDX, EVENTS, Guest, RX, RX_DATA_LEN, TX, block_on, read, wait_for, write_all,
};
use super::{READY_PORT, device};
use crate::virtio::testing::{Buffer, RawDescriptor};
use crate::virtio::{DeviceType, QueueHandle, Reset, VirtioDevice};

const PORT: u32 = 77;

#[test]
fn the_configuration_space_holds_the_guests_address() {
    let (device, _host) = device();
    assert_eq!(device.device_type(), DeviceType::Vsock);
    let mut config = [0xff; 12];
    device.read_config(0, &mut config);
    assert_eq!(config, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    device.read_config(7, &mut config[..2]);
    assert_eq!(config[..2], [0, 0]);
    device.read_config(u64::MAX, &mut config[..4]);
    assert_eq!(config[..4], [0; 4]);
}

#[test]
fn the_host_dials_before_the_driver_is_up_and_both_ends_talk() {
    let (mut device, host) = device();
    let connecting = host.connect(PORT);
    let mut guest = Guest::started(&mut device);
    let ports = guest.accept();
    let stream = block_on(connecting).unwrap();
    write_all(&stream, b"ping").unwrap();
    assert_eq!(guest.receive().1, b"ping");
    guest.send_data(ports, b"pong");
    let mut buffer = [0; 16];
    assert_eq!(read(&stream, &mut buffer).unwrap(), 4);
    assert_eq!(&buffer[..4], b"pong");
    drop(stream);
    let (shutdown, _) = guest.receive();
    assert_eq!(
        (shutdown.op, shutdown.flags),
        (Op::Shutdown as u16, SHUTDOWN_BOTH)
    );
}

#[test]
fn nobody_listening_is_a_refused_connection() {
    let (mut device, host) = device();
    let mut guest = Guest::started(&mut device);
    let connecting = host.connect(PORT);
    let (request, _) = guest.receive();
    let ports = Ports {
        host: request.src_port,
        guest: PORT,
    };
    guest.send(guest.header(ports, Op::Reset));
    assert_eq!(
        block_on(connecting).err().unwrap().kind(),
        ErrorKind::ConnectionRefused
    );
}

#[test]
fn the_guest_reports_ready_once() {
    let (mut device, host) = device();
    let accepting = thread::spawn({
        let host = host.clone();
        move || block_on(host.accept_ready()).unwrap()
    });
    let mut guest = Guest::started(&mut device);
    let ports = Ports {
        host: READY_PORT,
        guest: 5,
    };
    guest.send(guest.header(ports, Op::Request));
    assert_eq!(guest.receive().0.op, Op::Response as u16);
    guest.send_data(ports, b"ready");
    guest.send(Header {
        flags: SHUTDOWN_SEND,
        ..guest.header(ports, Op::Shutdown)
    });
    let stream = accepting.join().unwrap();
    let mut buffer = [0; 16];
    assert_eq!(read(&stream, &mut buffer).unwrap(), 5);
    assert_eq!(read(&stream, &mut buffer).unwrap(), 0);
    guest.send(guest.header(
        Ports {
            host: READY_PORT,
            guest: 6,
        },
        Op::Request,
    ));
    assert_eq!(guest.receive().0.op, Op::Reset as u16);
    assert_eq!(host.counters().resets, 1);
}

/// Bytes that differ at every position of a few hundred KiB.
fn pattern(position: usize) -> u8 {
    (position.wrapping_mul(0x9e37_79b9) >> 16).to_le_bytes()[0]
}

#[test]
fn a_hundred_megabytes_from_the_guest_arrive_in_order() {
    const TOTAL: usize = 100 << 20;
    const PACKET: usize = 64 * 1024;
    let (mut device, host) = device();
    let connecting = host.connect(PORT);
    let mut guest = Guest::started(&mut device);
    let ports = guest.accept();
    let stream = block_on(connecting).unwrap();
    let reader = thread::spawn(move || {
        let mut buffer = vec![0; PACKET];
        let mut position = 0;
        while position < TOTAL {
            let count = read(&stream, &mut buffer).unwrap();
            assert!(count > 0);
            for (index, byte) in buffer[..count].iter().enumerate().step_by(997) {
                assert_eq!(*byte, pattern(position + index));
            }
            position += count;
        }
        position
    });
    let packet: Vec<u8> = (0..TOTAL.min(PACKET)).map(pattern).collect();
    let (mut sent, mut acknowledged) = (0_u32, 0_u32);
    for round in 0..TOTAL / PACKET {
        while sent - acknowledged + u32::try_from(PACKET).unwrap() > RECEIVE_WINDOW {
            acknowledged = guest.receive().0.fwd_cnt;
        }
        let data: Vec<u8> = if round == 0 {
            packet.clone()
        } else {
            (round * PACKET..(round + 1) * PACKET)
                .map(pattern)
                .collect()
        };
        guest.send_data(ports, &data);
        sent += u32::try_from(PACKET).unwrap();
    }
    assert_eq!(reader.join().unwrap(), TOTAL);
    assert_eq!(host.counters().bytes_from_guest, TOTAL as u64);
}

#[test]
fn ten_megabytes_to_a_guest_with_a_tiny_window_arrive_in_order() {
    const TOTAL: usize = 10 << 20;
    let (mut device, host) = device();
    let connecting = host.connect(PORT);
    let mut guest = Guest::new();
    guest.window = 10_000;
    guest.driver.start(&mut device, EVENT_IDX);
    guest.post_buffers(16);
    let ports = guest.accept();
    let stream = block_on(connecting).unwrap();
    let writer = thread::spawn(move || {
        let data: Vec<u8> = (0..TOTAL).map(pattern).collect();
        write_all(&stream, &data).unwrap();
    });
    let mut position = 0;
    let mut unacknowledged = 0;
    while position < TOTAL {
        let (header, data) = guest.receive();
        if header.op == Op::Data as u16 {
            assert!(
                data.iter()
                    .enumerate()
                    .all(|(i, byte)| *byte == pattern(position + i))
            );
            position += data.len();
            unacknowledged += data.len();
            assert!(
                unacknowledged <= 10_000,
                "the host sent more than its credit"
            );
            *guest.consumed.entry(ports).or_default() += header.len;
        }
        // Tell the host when it asks, and now and then.
        if header.op == Op::CreditRequest as u16 || unacknowledged > 5000 {
            guest.send(guest.header(ports, Op::CreditUpdate));
            unacknowledged = 0;
        }
    }
    writer.join().unwrap();
}

#[test]
fn a_guest_without_receive_buffers_gets_its_packets_when_it_posts_some() {
    let (mut device, host) = device();
    let mut guest = Guest::new();
    guest.driver.start(&mut device, EVENT_IDX);
    let connecting = host.connect(PORT);
    thread::sleep(Duration::from_millis(20));
    assert!(guest.try_receive().is_none());
    guest.post_buffers(1);
    guest.accept();
    block_on(connecting).unwrap();
}

#[test]
fn malformed_chains_come_back_unused_and_the_device_goes_on() {
    let (mut device, host) = device();
    let mut guest = Guest::new();
    guest.driver.start(&mut device, EVENT_IDX);
    let queue = &mut guest.driver.queues[TX];
    // Too short for a header, writable only, outside memory, and a loop.
    queue.add(&[Buffer {
        address: 0x10_0000,
        len: 43,
        writable: false,
    }]);
    queue.add(&[Buffer {
        address: 0x10_0000,
        len: 44,
        writable: true,
    }]);
    queue.add(&[Buffer {
        address: 1 << 40,
        len: 44,
        writable: false,
    }]);
    queue.write_descriptor(
        60,
        RawDescriptor {
            address: 0x10_0000,
            len: 1,
            flags: 1,
            next: 60,
        },
    );
    queue.publish(60);
    queue.kick();
    // Too short for a packet, readable, outside memory.
    let queue = &mut guest.driver.queues[RX];
    queue.add(&[Buffer {
        address: 0x10_0000,
        len: 44,
        writable: true,
    }]);
    queue.add(&[Buffer {
        address: 0x10_0000,
        len: 4096,
        writable: false,
    }]);
    queue.add(&[Buffer {
        address: u64::MAX - 8,
        len: 4096,
        writable: true,
    }]);
    queue.kick();
    let connecting = host.connect(PORT);
    for _ in 0..3 {
        assert_eq!(wait_for(|| guest.driver.queues[RX].used()).len, 0);
    }
    for _ in 0..4 {
        assert_eq!(wait_for(|| guest.driver.queues[TX].used()).len, 0);
    }
    guest.post_buffers(2);
    guest.accept();
    block_on(connecting).unwrap();
    assert_eq!(host.counters().malformed, 7);
    assert!(guest.driver.interrupt.seen().needs_reset.is_empty());
}

#[test]
fn a_broken_ring_asks_for_a_reset_and_ends_all_streams() {
    let (mut device, host) = device();
    let connecting = host.connect(PORT);
    let mut guest = Guest::started(&mut device);
    guest.accept();
    let stream = block_on(connecting).unwrap();
    guest.driver.queues[TX].set_avail_index(1000);
    guest.driver.queues[TX].kick();
    guest
        .driver
        .interrupt
        .wait_until(|seen| !seen.needs_reset.is_empty());
    assert_eq!(
        read(&stream, &mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
}

#[test]
fn a_paused_guest_hears_that_its_connections_are_gone() {
    let (mut device, host) = device();
    let connecting = host.connect(PORT);
    let mut guest = Guest::started(&mut device);
    guest.accept();
    let stream = block_on(connecting).unwrap();
    let queues: Vec<QueueHandle> = device.deactivate();
    assert_eq!(
        queues.iter().map(|handle| handle.index).collect::<Vec<_>>(),
        [0, 1, 2]
    );
    assert_eq!(
        read(&stream, &mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert!(device.deactivate().is_empty());

    let address = guest.driver.allocate(4, 4);
    guest.driver.queues[EVENTS].add(&[Buffer {
        address,
        len: 4,
        writable: true,
    }]);
    guest
        .driver
        .memory
        .write_obj(Le32::from(99), GuestAddress(address))
        .unwrap();
    let mut activation = guest.driver.activation(EVENT_IDX);
    activation.queues = queues;
    device.activate(activation).unwrap();
    assert_eq!(wait_for(|| guest.driver.queues[EVENTS].used()).len, 4);
    let event: Le32 = guest.driver.memory.read_obj(GuestAddress(address)).unwrap();
    assert_eq!(event.to_native(), 0, "a transport reset");
    // And it works as before.
    let connecting = host.connect(PORT);
    guest.accept();
    block_on(connecting).unwrap();
}

#[test]
fn when_the_device_is_gone_nobody_waits() {
    let (mut device, host) = device();
    let mut guest = Guest::started(&mut device);
    let connecting = host.connect(PORT);
    guest.accept();
    let stream = block_on(connecting).unwrap();
    let waiting = thread::spawn(move || read(&stream, &mut [0]).unwrap_err().kind());
    let accepting = thread::spawn({
        let host = host.clone();
        move || block_on(host.accept_ready()).err().unwrap().kind()
    });
    thread::sleep(Duration::from_millis(10));
    drop(device);
    assert_eq!(waiting.join().unwrap(), ErrorKind::ConnectionReset);
    assert_eq!(accepting.join().unwrap(), ErrorKind::NotConnected);
    assert_eq!(
        block_on(host.connect(PORT)).err().unwrap().kind(),
        ErrorKind::NotConnected
    );
}

#[test]
fn a_driver_without_interrupt_needs_is_not_interrupted() {
    let (mut device, host) = device();
    let connecting = host.connect(PORT);
    let mut guest = Guest::started(&mut device);
    guest.driver.queues[RX].set_used_event(0x8000);
    guest.driver.queues[TX].set_used_event(0x8000);
    let ports = guest.accept();
    let stream = block_on(connecting).unwrap();
    let before = guest.driver.interrupt.seen();
    for _ in 0..10 {
        guest.send_data(ports, &vec![0; RX_DATA_LEN as usize]);
        read(&stream, &mut [0; 8192]).unwrap();
    }
    assert_eq!(guest.driver.interrupt.seen(), before);
    assert_eq!(
        host.counters().bytes_from_guest,
        10 * u64::from(RX_DATA_LEN)
    );
}

#[test]
fn each_boot_may_report_ready_once_and_a_machines_reset_ends_what_waits_for_a_driver() {
    let (mut device, host) = device();
    for port in 1..=2 {
        let mut guest = Guest::started(&mut device);
        let ports = Ports {
            host: READY_PORT,
            guest: port,
        };
        guest.send(guest.header(ports, Op::Request));
        assert_eq!(guest.receive().0.op, Op::Response as u16);
        let stream = block_on(host.accept_ready()).unwrap();
        device.deactivate();
        device.reset(Reset::Driver);
        let mut buffer = [0; 1];
        let error = read(&stream, &mut buffer).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    let waiting = host.connect(PORT);
    device.reset(Reset::Driver);
    let mut guest = Guest::started(&mut device);
    guest.accept();
    block_on(waiting).unwrap();
    device.deactivate();
    let waiting = host.connect(PORT);
    device.reset(Reset::Machine);
    let error = block_on(waiting).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}
