//! The balloon with a driver in front of it.

use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::virtio::testing::{Buffer, TestDriver};

const REPORTING_QUEUE: usize = 4;

fn balloon() -> (Balloon, BalloonControl) {
    let io = EventLoop::spawn("test-io", Box::new(|| Ok(()))).unwrap();
    Balloon::new(BalloonConfig { reporting: true }, io)
}

/// A driver over 1 MiB of memory that is full of ones.
fn driver() -> TestDriver {
    let driver = TestDriver::new(1 << 20, &QUEUE_SIZES);
    driver
        .memory
        .write_slice(&[1; 0x80000], GuestAddress(0x80000))
        .unwrap();
    driver
}

fn byte(driver: &TestDriver, address: u64) -> u8 {
    driver.memory.read_obj(GuestAddress(address)).unwrap()
}

fn page_numbers(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

#[test]
fn inflated_pages_go_back_to_the_host_and_deflated_ones_work_again() {
    let (mut balloon, control) = balloon();
    let mut driver = driver();
    driver.start(&mut balloon, 0);
    driver.request(0, &page_numbers(&[0x90, 0x92, 0x91]), 0);
    assert_eq!(driver.complete(0).len, 0);
    assert_eq!(control.reclaimed(), 3 * 4096);
    let around = [0x8_ffff, 0x9_0000, 0x9_2fff, 0x9_3000].map(|at| byte(&driver, at));
    assert_eq!(around, [1, 0, 0, 1]);
    driver.request(1, &page_numbers(&[0x90]), 0);
    driver.complete(1);
    driver
        .memory
        .write_obj(5_u8, GuestAddress(0x9_0000))
        .unwrap();
    assert_eq!(byte(&driver, 0x9_0000), 5);
}

#[test]
fn reported_ranges_go_back_to_the_host_whatever_number_the_queue_has() {
    for queue in 2..=REPORTING_QUEUE {
        let (mut balloon, control) = balloon();
        let mut driver = driver();
        driver.start(&mut balloon, 0);
        let range = |address, len| Buffer {
            address,
            len,
            writable: true,
        };
        driver.queues[queue].add(&[range(0xa_0000, 0x4000), range(0xc_0000, 0x2000)]);
        driver.queues[queue].kick();
        driver.complete(queue);
        assert_eq!(control.reclaimed(), 0x6000);
        assert_eq!((byte(&driver, 0xa_3fff), byte(&driver, 0xa_4000)), (0, 1));
    }
}

#[test]
fn pages_the_guest_does_not_have_and_odd_lengths_are_survived() {
    let (mut balloon, control) = balloon();
    let mut driver = driver();
    driver.start(&mut balloon, 0);
    driver.request(0, &page_numbers(&[u32::MAX, 0x100, 0x90]), 0);
    driver.complete(0);
    assert_eq!((control.refused(), control.reclaimed()), (2, 4096));
    driver.request(0, &[0x91, 0, 0], 0);
    driver.complete(0);
    driver.queues[0].add(&[Buffer {
        address: 0xf_fff0,
        len: 64,
        writable: false,
    }]);
    driver.queues[0].kick();
    driver.complete(0);
    assert_eq!(byte(&driver, 0x9_1000), 1);
    assert!(driver.interrupt.seen().needs_reset.is_empty());
}

#[test]
fn a_target_interrupts_the_driver_which_answers_with_what_it_holds() {
    let (mut balloon, control) = balloon();
    control.set_target(7);
    let driver = driver();
    driver.start(&mut balloon, 0);
    control.set_target(300);
    assert_eq!(driver.interrupt.seen().config, 1);
    let mut config = [0xff; 12];
    balloon.read_config(0, &mut config);
    assert_eq!(config, [0x2c, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    balloon.write_config(4, &[9, 0, 0, 0]);
    balloon.write_config(0, &[9, 0, 0, 0]);
    balloon.write_config(4, &[1]);
    assert_eq!(control.actual(), 9);
    balloon.read_config(2, &mut config[..4]);
    assert_eq!(config[..4], [0, 0, 9, 0]);
}

#[test]
fn target_and_size_survive_a_restore() {
    let (mut saved, control) = balloon();
    control.set_target(300);
    saved.write_config(4, &[9, 0, 0, 0]);
    let (mut restored, control) = balloon();
    restored.restore(&saved.save()).unwrap();
    assert_eq!(control.actual(), 9);
    assert_eq!(restored.save(), saved.save());
    assert!(restored.restore(&[0xff]).is_err());
}

#[test]
fn a_missing_queue_is_refused() {
    let (mut balloon, _) = balloon();
    let driver = driver();
    let mut activation = driver.activation(0);
    activation.queues.remove(1);
    assert!(matches!(
        balloon.activate(activation),
        Err(ActivateError::QueueMissing(1))
    ));
}

#[test]
fn the_next_driver_finds_an_empty_balloon_and_the_same_target() {
    let (mut balloon, control) = balloon();
    let driver = driver();
    driver.start(&mut balloon, 0);
    control.set_target_bytes(7 * 4096 + 1);
    balloon.write_config(CONFIG_ACTUAL, &5_u32.to_le_bytes());
    assert_eq!((control.actual(), control.held()), (5, 5 * 4096));
    balloon.deactivate();
    balloon.reset(Reset::Driver);
    assert_eq!(control.actual(), 0);
    let mut config = [0; 8];
    balloon.read_config(0, &mut config);
    assert_eq!(config, [7, 0, 0, 0, 0, 0, 0, 0]);
}
