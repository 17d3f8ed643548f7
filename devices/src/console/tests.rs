//! The terminal without a device.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::*;

#[derive(Default)]
struct Counted(AtomicUsize);

impl Wake for Counted {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn waker() -> (Waker, Arc<Counted>) {
    let counted = Arc::new(Counted::default());
    (Waker::from(Arc::clone(&counted)), counted)
}

fn reader(terminal: &Terminal, capacity: usize, when_full: WhenFull) -> ConsoleReader {
    terminal.reader(ReaderConfig {
        capacity,
        when_full,
    })
}

fn read(reader: &ConsoleReader) -> Vec<u8> {
    let mut bytes = [0; 64];
    let count = reader.try_read(&mut bytes);
    bytes[..count].to_vec()
}

/// Counts what it is told.
#[derive(Default)]
struct Device {
    rooms: AtomicUsize,
    inputs: AtomicUsize,
}

impl ConsoleDevice for Device {
    fn output_room(&self) {
        self.rooms.fetch_add(1, Ordering::SeqCst);
    }
    fn input_ready(&self) {
        self.inputs.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn every_reader_gets_all_output_from_its_beginning_on() {
    let terminal = Terminal::new();
    let first = reader(&terminal, 8, WhenFull::Hold);
    assert_eq!(terminal.offer(b"abc"), 3);
    let second = reader(&terminal, 8, WhenFull::Hold);
    assert_eq!(terminal.offer(b"de"), 2);
    assert_eq!(
        (read(&first), read(&second)),
        (b"abcde".into(), b"de".into())
    );
    assert_eq!(terminal.log().tail(), b"abcde");
}

#[test]
fn the_slowest_holding_reader_holds_the_device_which_is_told_of_room_once() {
    let terminal = Terminal::new();
    let device = Arc::new(Device::default());
    let as_device: Arc<dyn ConsoleDevice> = device.clone();
    terminal.attach(Arc::downgrade(&as_device));
    let slow = reader(&terminal, 2, WhenFull::Hold);
    let fast = reader(&terminal, 8, WhenFull::Hold);
    assert_eq!(terminal.offer(b"abc"), 2);
    assert_eq!(read(&fast), b"ab");
    assert_eq!(device.rooms.load(Ordering::SeqCst), 1);
    assert_eq!(terminal.offer(b"c"), 0, "the slow one has no room yet");
    assert_eq!(read(&slow), b"ab");
    assert_eq!(read(&slow), b"");
    assert_eq!(device.rooms.load(Ordering::SeqCst), 2);
    assert_eq!(terminal.offer(b"c"), 1);
    read(&slow);
    assert_eq!(device.rooms.load(Ordering::SeqCst), 2, "nobody was refused");
}

#[test]
fn a_dropping_reader_loses_the_oldest_and_counts_it() {
    let terminal = Terminal::new();
    let reader = reader(&terminal, 4, WhenFull::DropOldest);
    assert_eq!(terminal.offer(b"0123456789"), 10);
    assert_eq!((read(&reader), reader.lost()), (b"6789".into(), 6));
}

#[test]
fn a_waiting_reader_is_woken_by_output_and_by_the_end() {
    let terminal = Terminal::new();
    let reader = reader(&terminal, 4, WhenFull::Hold);
    let (waker, woken) = waker();
    let mut cx = Context::from_waker(&waker);
    let mut bytes = [0; 4];
    assert!(reader.poll_read(&mut cx, &mut bytes).is_pending());
    terminal.offer(b"x");
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    assert_eq!(reader.poll_read(&mut cx, &mut bytes), Poll::Ready(1));
    assert!(reader.poll_read(&mut cx, &mut bytes).is_pending());
    terminal.force(b"last");
    terminal.close();
    assert_eq!(woken.0.load(Ordering::SeqCst), 2);
    assert_eq!(reader.poll_read(&mut cx, &mut bytes), Poll::Ready(4));
    assert_eq!(reader.poll_read(&mut cx, &mut bytes), Poll::Ready(0));
}

#[test]
fn all_who_wait_to_type_are_woken_by_room() {
    let terminal = Terminal::new();
    assert_eq!(terminal.input(&[b'x'; INPUT_CAPACITY + 1]), INPUT_CAPACITY);
    let typists = [waker(), waker()];
    for (waker, _) in &typists {
        let mut cx = Context::from_waker(waker);
        for _ in 0..2 {
            assert!(terminal.poll_input(&mut cx, b"yz").is_pending());
        }
    }
    let mut byte = [0; 1];
    assert_eq!(terminal.take_input(&mut byte), 1);
    for (waker, woken) in &typists {
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        let mut cx = Context::from_waker(waker);
        let taken = terminal.poll_input(&mut cx, b"yz");
        assert!(matches!(taken, Poll::Ready(Ok(1)) | Poll::Pending));
    }
    terminal.begin_boot();
    assert_eq!(typists[1].1.0.load(Ordering::SeqCst), 2);
    assert!(terminal.waiting_input().is_empty());
    terminal.close();
    let mut cx = Context::from_waker(&typists[0].0);
    assert!(matches!(
        terminal.poll_input(&mut cx, b"y"),
        Poll::Ready(Err(_))
    ));
    assert_eq!(terminal.input(b"y"), 0);
}
