//! The port with a driver in front of it and a terminal behind it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use crate::console::{ConsoleReader, INPUT_CAPACITY, ReaderConfig, WhenFull};

#[derive(Default)]
struct CountedLine(AtomicUsize);

impl IrqLine for CountedLine {
    fn trigger(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

struct Fixture {
    serial: Arc<Serial>,
    line: Arc<CountedLine>,
    terminal: Terminal,
}

fn fixture() -> Fixture {
    let line = Arc::new(CountedLine::default());
    let terminal = Terminal::new();
    let serial = Serial::new(Some(line.clone()), terminal.clone());
    Fixture {
        serial,
        line,
        terminal,
    }
}

impl Fixture {
    fn read(&self, offset: u64) -> u8 {
        let mut data = [0];
        self.serial.read(offset, &mut data);
        data[0]
    }

    fn write(&self, offset: u64, value: u8) {
        self.serial.write(offset, &[value]);
    }

    fn print(&self, text: &[u8]) {
        text.iter().for_each(|&byte| self.write(0, byte));
    }

    /// Whether the line went up since the last time.
    fn interrupted(&self) -> bool {
        self.line.0.swap(0, Ordering::SeqCst) > 0
    }

    fn held_reader(&self, capacity: usize) -> ConsoleReader {
        self.terminal.reader(ReaderConfig {
            capacity,
            when_full: WhenFull::Hold,
        })
    }
}

fn drain(reader: &ConsoleReader) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    let count = reader.try_read(&mut bytes);
    bytes.truncate(count);
    bytes
}

/// What Linux's 8250 driver does in its handler and when it starts to transmit.
#[derive(Default)]
struct Driver {
    to_print: VecDeque<u8>,
    got: Vec<u8>,
    breaks: usize,
}

impl Driver {
    fn begin(&mut self, port: &Fixture) {
        port.write(2, 0b1000_0111);
        port.write(1, 0b0101);
        self.handle(port);
    }

    fn print(&mut self, port: &Fixture, text: &[u8]) {
        self.to_print.extend(text);
        port.write(1, 0b0111);
    }

    /// Runs the handler if the line went up.
    fn handle(&mut self, port: &Fixture) {
        while port.interrupted() {
            for pass in 0.. {
                assert!(pass < 512, "the driver gives up on such a port");
                if port.read(2) & 1 != 0 {
                    break;
                }
                self.pass(port);
            }
        }
    }

    fn pass(&mut self, port: &Fixture) {
        loop {
            let status = port.read(5);
            if status & 0x11 == 0 {
                break;
            }
            let byte = port.read(0);
            match status & 0x10 {
                0 => self.got.push(byte),
                _ => self.breaks += 1,
            }
        }
        if port.read(5) & 0x20 == 0 || port.read(1) & 0b10 == 0 {
            return;
        }
        for _ in 0..uart::FIFO_LEN {
            let Some(byte) = self.to_print.pop_front() else {
                port.write(1, 0b0101);
                return;
            };
            port.write(0, byte);
        }
    }
}

#[test]
fn a_driver_recognizes_a_16550a() {
    let port = fixture();
    assert_eq!(port.read(2), 0x01, "no FIFOs before they are enabled");
    port.write(2, 1);
    assert_eq!(port.read(2), 0xc1);
    port.write(7, 0x5a);
    assert_eq!(port.read(7), 0x5a);
    port.write(4, 0x1a);
    assert_eq!(port.read(6) & 0xf0, 0x90, "RTS and OUT2 come back");
    port.write(0, b'x');
    assert_eq!((port.read(5) & 1, port.read(0)), (1, b'x'));
    port.write(4, 0x0b);
    assert_eq!(port.read(6), 0xb0, "a terminal is there");
    port.write(3, 0x83);
    port.write(0, 12);
    assert_eq!((port.read(0), port.read(1)), (12, 0));
    port.write(3, 0x03);
    assert!(port.terminal.log().tail().is_empty(), "nothing was printed");
}

#[test]
fn polled_output_reaches_the_terminal() {
    let port = fixture();
    port.print(b"hello");
    port.serial.write(0, b"ab");
    assert_eq!(port.terminal.log().tail(), b"hello");
    assert_eq!(port.read(5) & 0x60, 0x60, "the transmitter is empty");
}

#[test]
fn the_transmitter_is_empty_only_when_the_reader_has_room() {
    let port = fixture();
    let reader = port.held_reader(4);
    port.write(2, 1);
    port.write(1, 0b10);
    assert!(port.interrupted(), "it is empty at first");
    assert_eq!(port.read(2), 0xc2);
    assert_eq!(port.read(2), 0xc1, "said once");
    port.print(b"0123");
    assert!(port.interrupted());
    port.read(2);
    port.print(b"4");
    assert!(!port.interrupted());
    assert_eq!(port.read(5) & 0x60, 0, "busy");
    port.print(b"56789");
    assert_eq!(drain(&reader), b"0123");
    assert_eq!(port.read(5) & 0x60, 0, "two are left");
    assert!(!port.interrupted());
    assert_eq!(drain(&reader), b"4567");
    assert_eq!(port.read(5) & 0x60, 0x60);
    assert!(port.interrupted());
    assert_eq!(drain(&reader), b"89");
}

#[test]
fn a_kernel_that_prints_without_waiting_loses_nothing_and_cannot_fill_the_host() {
    let port = fixture();
    let reader = port.held_reader(1000);
    port.write(2, 1);
    let text: Vec<u8> = (0..=255).cycle().take(1500).collect();
    port.print(&text);
    let mut got = Vec::new();
    while got.len() < text.len() {
        got.extend(drain(&reader));
    }
    assert_eq!(got, text);
    port.print(&vec![b'x'; 10_000]);
    assert_eq!(drain(&reader).len(), 2000);
    assert!(reader.lost() > 7000);
}

#[test]
fn a_gone_reader_holds_nobody() {
    let port = fixture();
    let reader = port.held_reader(1);
    port.print(b"abc");
    assert_eq!(port.read(5) & 0x60, 0);
    drop(reader);
    assert_eq!(port.read(5) & 0x60, 0x60);
    assert_eq!(port.terminal.log().tail(), b"abc");
}

#[test]
fn input_arrives_whole_although_it_is_longer_than_the_fifo() {
    let port = fixture();
    let mut driver = Driver::default();
    driver.begin(&port);
    let text: Vec<u8> = (0..200).collect();
    assert_eq!(port.terminal.input(&text), 200);
    driver.handle(&port);
    assert_eq!(driver.got, text);
}

#[test]
fn a_guest_that_does_not_read_stops_the_input() {
    let port = fixture();
    port.write(2, 1);
    let text = vec![7; 2 * INPUT_CAPACITY];
    assert_eq!(port.terminal.input(&text), INPUT_CAPACITY);
    assert_eq!(port.terminal.input(&text), uart::FIFO_LEN);
    assert_eq!(port.terminal.input(b"x"), 0);
    port.read(0);
    assert_eq!(port.terminal.input(b"xy"), 1);
}

#[test]
fn received_bytes_are_reported_by_the_trigger_level() {
    let port = fixture();
    port.write(2, 0b0100_0001);
    port.write(1, 1);
    let _ = port.terminal.input(b"abc");
    assert!(port.interrupted());
    assert_eq!(port.read(2), 0xcc, "fewer than four");
    let _ = port.terminal.input(b"d");
    assert_eq!(port.read(2), 0xc4);
    port.write(2, 0b0100_0011);
    assert_eq!(port.read(2), 0xc1, "cleared");
}

#[test]
fn a_port_without_a_line_leaves_the_input_to_others() {
    let terminal = Terminal::new();
    let serial = Serial::new(None, terminal.clone());
    let _ = terminal.input(b"typed");
    serial.write(0, b"x");
    serial.read(5, &mut [0]);
    assert_eq!(terminal.waiting_input(), b"typed");
    assert_eq!(terminal.log().tail(), b"x");
}

#[test]
fn a_break_comes_between_what_was_typed_before_and_after() {
    let port = fixture();
    let mut driver = Driver::default();
    driver.begin(&port);
    let _ = port.terminal.input(b"a");
    port.serial.send_break();
    let _ = port.terminal.input(b"h");
    driver.handle(&port);
    assert_eq!(
        (driver.got.as_slice(), driver.breaks),
        (b"ah".as_slice(), 1)
    );
}

#[test]
fn endless_output_lets_the_driver_out_of_its_handler() {
    let port = fixture();
    let mut driver = Driver::default();
    driver.begin(&port);
    let text = vec![b'x'; 40 << 10];
    driver.print(&port, &text);
    driver.handle(&port);
    assert!(driver.to_print.is_empty());
    assert_eq!(port.terminal.log().tail(), text);
}

#[test]
fn a_reset_forgets_the_registers_and_no_output() {
    let port = fixture();
    let reader = port.held_reader(2);
    port.write(2, 1);
    port.write(1, 7);
    port.write(7, 9);
    let _ = port.terminal.input(b"typed");
    port.print(b"abc");
    port.serial.reset();
    assert_eq!((port.read(1), port.read(7), port.read(5)), (0, 0, 0x60));
    assert_eq!(drain(&reader), b"abc");
}

#[test]
fn registers_and_waiting_bytes_survive_a_restore() {
    let port = fixture();
    let _reader = port.held_reader(1);
    port.write(2, 1);
    port.write(1, 1);
    port.write(7, 0x5a);
    port.print(b"0123");
    let _ = port.terminal.input(&[9; 100]);
    port.serial.send_break();
    let state = port.serial.save();
    let other = fixture();
    let reader = other.held_reader(100);
    other.serial.restore(&state).unwrap();
    assert_eq!(drain(&reader), b"123");
    assert_eq!(other.read(7), 0x5a);
    let bytes = (0..101).map(|_| (other.read(5) & 0x11, other.read(0)));
    assert_eq!(bytes.filter(|&byte| byte == (1, 9)).count(), 100);
    assert!(other.serial.restore(b"\x0a\x01\x00").is_err());
}

#[derive(Clone, Debug)]
enum Step {
    Print(Vec<u8>),
    Handle,
    Read(usize),
    Type(Vec<u8>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bytes = |len| prop::collection::vec(any::<u8>(), 0..len);
    let step = prop_oneof![
        bytes(100).prop_map(Step::Print),
        Just(Step::Handle),
        (1_usize..100).prop_map(Step::Read),
        bytes(5000).prop_map(Step::Type),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    #[test]
    fn nothing_is_lost_or_doubled_whenever_readers_stall(steps in steps(), capacity in 1_usize..64) {
        let port = fixture();
        let readers = [port.held_reader(capacity), port.held_reader(100)];
        let mut driver = Driver::default();
        driver.begin(&port);
        let (mut printed, mut typed) = (Vec::<u8>::new(), Vec::new());
        let mut got: [Vec<u8>; 2] = [Vec::new(), Vec::new()];
        let mut read = |index: usize, len: usize| {
            let mut bytes = vec![0; len];
            let count = readers[index].try_read(&mut bytes);
            got[index].extend(&bytes[..count]);
            count
        };
        for step in steps {
            match step {
                Step::Print(text) => {
                    printed.extend(&text);
                    driver.print(&port, &text);
                }
                Step::Handle => driver.handle(&port),
                Step::Read(len) => {
                    read(len % 2, len);
                }
                Step::Type(text) => {
                    let taken = port.terminal.input(&text);
                    typed.extend(&text[..taken]);
                }
            }
        }
        loop {
            driver.handle(&port);
            if read(0, 7) + read(1, 50) == 0 {
                break;
            }
        }
        prop_assert!(driver.to_print.is_empty(), "the interrupt never came");
        prop_assert_eq!(&got[0], &printed);
        prop_assert_eq!(&got[1], &printed);
        prop_assert_eq!(driver.got, typed);
        prop_assert_eq!(readers[0].lost() + readers[1].lost(), 0);
    }

    #[test]
    fn no_access_panics(accesses in prop::collection::vec((any::<bool>(), 0_u64..10, any::<u8>()), 0..200)) {
        let port = fixture();
        let _reader = port.held_reader(3);
        for (writes, offset, value) in accesses {
            if writes {
                port.write(offset, value);
            } else {
                port.read(offset);
            }
            let _ = port.terminal.input(&[value]);
        }
    }
}
