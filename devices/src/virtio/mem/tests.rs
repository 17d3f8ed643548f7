//! The memory device with a driver in front of it.

use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::virtio::testing::TestDriver;

const REGION: MemRegion = MemRegion {
    base: 0x8_0000,
    len: 0x8_0000,
    block_len: 0x1_0000,
};

const PLUG: u8 = 0;
const UNPLUG: u8 = 1;
const UNPLUG_ALL: u8 = 2;
const STATE: u8 = 3;

const ACK: u8 = 0;
const NACK: u8 = 1;
const ERROR: u8 = 3;

fn device() -> (Mem, MemControl) {
    let io = EventLoop::spawn("test-io", Box::new(|| Ok(()))).unwrap();
    Mem::new(REGION, io)
}

fn started(device: &mut Mem) -> TestDriver {
    let driver = TestDriver::new(1 << 20, &QUEUE_SIZES);
    driver.start(device, 0);
    driver
}

/// Sends a request as Linux does; the response's type and state.
fn ask(driver: &mut TestDriver, kind: u8, address: u64, blocks: u16) -> (u8, u8) {
    let mut request = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    request.extend(address.to_le_bytes());
    request.extend(blocks.to_le_bytes());
    request.extend([0; 6]);
    driver.request(0, &request, 10);
    let done = driver.complete(0);
    assert_eq!(done.len, 10);
    (done.writable[0], done.writable[8])
}

fn block(number: u64) -> u64 {
    REGION.base + number * REGION.block_len
}

fn config(device: &Mem) -> Vec<u64> {
    let mut bytes = [0xff; 64];
    device.read_config(0, &mut bytes);
    let (words, _) = bytes.as_chunks();
    words.iter().map(|word| u64::from_le_bytes(*word)).collect()
}

#[test]
fn a_guest_plugs_what_it_is_asked_to_and_no_more() {
    let (mut device, control) = device();
    let mut driver = started(&mut device);
    assert_eq!(ask(&mut driver, PLUG, block(0), 1).0, NACK);
    assert_eq!(control.request(3 * REGION.block_len + 1), 0x3_0000);
    assert_eq!(driver.interrupt.seen().config, 1);
    assert_eq!(ask(&mut driver, PLUG, block(0), 2).0, ACK);
    assert_eq!(ask(&mut driver, PLUG, block(4), 2).0, NACK);
    assert_eq!(ask(&mut driver, PLUG, block(4), 1).0, ACK);
    assert_eq!(control.plugged(), 0x3_0000);
    let expected = [
        0x1_0000, 0, 0x8_0000, 0x8_0000, 0x8_0000, 0x3_0000, 0x3_0000, 0,
    ];
    assert_eq!(config(&device), expected);
    assert_eq!(ask(&mut driver, STATE, block(0), 2), (ACK, 0));
    assert_eq!(ask(&mut driver, STATE, block(2), 2), (ACK, 1));
    assert_eq!(ask(&mut driver, STATE, block(1), 2), (ACK, 2));
}

#[test]
fn unplugged_blocks_go_back_to_the_host() {
    let (mut device, control) = device();
    let mut driver = started(&mut device);
    control.request(REGION.len);
    ask(&mut driver, PLUG, block(0), 8);
    let memory = Arc::clone(&driver.memory);
    let fill = || {
        for number in 0..8 {
            memory.write_obj(7_u8, GuestAddress(block(number))).unwrap();
        }
    };
    let byte = |number| memory.read_obj::<u8>(GuestAddress(block(number))).unwrap();
    fill();
    assert_eq!(ask(&mut driver, UNPLUG, block(2), 2).0, ACK);
    assert_eq!([1, 2, 3, 4].map(byte), [7, 0, 0, 7]);
    assert_eq!(control.plugged(), 6 * REGION.block_len);
    fill();
    assert_eq!(ask(&mut driver, UNPLUG_ALL, 0, 0).0, ACK);
    assert_eq!([0, 2, 7].map(byte), [0, 0, 0]);
    assert_eq!(control.plugged(), 0);
}

#[test]
fn requests_that_make_no_sense_are_errors_and_change_nothing() {
    let (mut device, control) = device();
    let mut driver = started(&mut device);
    control.request(REGION.len);
    ask(&mut driver, PLUG, block(1), 1);
    driver
        .memory
        .write_obj(7_u8, GuestAddress(block(0)))
        .unwrap();
    for (kind, address, blocks) in [
        (PLUG, block(1), 1),
        (PLUG, block(0), 2),
        (PLUG, block(0) + 1, 1),
        (PLUG, block(8), 1),
        (PLUG, 0, 1),
        (PLUG, block(0), 0),
        (UNPLUG, block(0), 1),
        (UNPLUG, block(0), 2),
        (UNPLUG, u64::MAX, u16::MAX),
        (STATE, block(7), 2),
        (4, block(0), 1),
        (0xff, 0, 0),
    ] {
        let (answer, _) = ask(&mut driver, kind, address, blocks);
        assert_eq!(answer, ERROR, "{kind} {address:#x} {blocks}");
    }
    assert_eq!(control.refused(), 12);
    assert_eq!(control.plugged(), REGION.block_len);
    let kept: u8 = driver.memory.read_obj(GuestAddress(block(0))).unwrap();
    assert_eq!(kept, 7);
}

#[test]
fn short_requests_and_answers_without_room_are_survived() {
    let (mut device, control) = device();
    let mut driver = started(&mut device);
    control.request(REGION.len);
    driver.request(0, &[PLUG, 0], 10);
    assert_eq!(driver.complete(0).writable[0], ERROR);
    driver.request(0, &[UNPLUG_ALL; 24], 4);
    assert_eq!(driver.complete(0).len, 0);
    assert_eq!(ask(&mut driver, PLUG, block(0), 1).0, ACK);
    assert!(driver.interrupt.seen().needs_reset.is_empty());
}

#[test]
fn blocks_and_wish_survive_a_restore_over_the_same_region() {
    let (mut saved, control) = device();
    let mut driver = started(&mut saved);
    control.request(0x5_0000);
    ask(&mut driver, PLUG, block(3), 4);
    saved.deactivate();
    let (mut restored, control) = device();
    restored.restore(&saved.save()).unwrap();
    assert_eq!(
        (control.requested(), control.plugged()),
        (0x5_0000, 0x4_0000)
    );
    let io = EventLoop::spawn("test-io", Box::new(|| Ok(()))).unwrap();
    let smaller = MemRegion {
        len: 0x4_0000,
        ..REGION
    };
    let (mut other, _) = Mem::new(smaller, io);
    assert!(other.restore(&saved.save()).is_err());
    assert!(other.restore(&[0xff]).is_err());
}

#[test]
fn blocks_outlive_a_driver_but_not_the_machine() {
    let (mut device, control) = device();
    let mut driver = started(&mut device);
    control.request(REGION.len);
    ask(&mut driver, PLUG, block(3), 4);
    device.deactivate();
    device.reset(Reset::Driver);
    assert_eq!(control.plugged(), 0x4_0000);
    device.reset(Reset::Machine);
    assert_eq!((control.plugged(), control.requested()), (0, REGION.len));
}
