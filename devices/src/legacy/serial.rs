//! A 16550 serial port: the guest's console.
//!
//! Output never blocks the guest: the sink takes each byte at once. Input waits in a bounded
//! queue until the guest has room for it.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message as _;
use vm_superio::serial::{NoEvents, SerialState as Registers};
use vm_superio::{Serial as Uart, Trigger};

use crate::bus::BusDevice;
use crate::interrupt::IrqLine;

/// Length in bytes of the port range.
pub const LEN: u64 = 8;
/// How much input waits for the guest, in bytes: a pasted screenful.
pub const INPUT_CAPACITY: usize = 4 << 10;

/// Takes what the guest prints, byte by byte on a vCPU thread; it must not block.
pub trait SerialSink: Send + Sync {
    /// Takes one byte.
    fn put(&self, byte: u8);
}

#[derive(Clone)]
struct Line(Arc<dyn IrqLine>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

#[derive(Clone)]
struct Output(Arc<dyn SerialSink>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        bytes.iter().for_each(|&byte| self.0.put(byte));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Port {
    uart: Uart<Line, NoEvents, Output>,
    input: VecDeque<u8>,
}

impl Port {
    /// Moves waiting input to the UART as far as it has room; answers whether any moved.
    fn feed(&mut self) -> bool {
        let room = self.uart.fifo_capacity().min(self.input.len());
        let next: Vec<u8> = self.input.iter().copied().take(room).collect();
        // A failing interrupt line leaves the bytes in the UART: the guest may poll for them.
        let moved = self.uart.enqueue_raw_bytes(&next).unwrap_or(0);
        self.input.drain(..moved.min(room));
        moved > 0
    }
}

/// The serial port.
pub struct Serial {
    port: Mutex<Port>,
    on_room: Box<dyn Fn() + Send + Sync>,
}

impl Serial {
    /// A port that prints into `sink` and interrupts through `line`. `on_room` is told when
    /// waiting input has moved on; it runs on a vCPU thread and must not block.
    #[must_use]
    pub fn new(
        line: Arc<dyn IrqLine>,
        sink: Arc<dyn SerialSink>,
        on_room: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        let uart = Uart::new(Line(line), Output(sink));
        Self {
            port: Mutex::new(Port {
                uart,
                input: VecDeque::new(),
            }),
            on_room,
        }
    }

    /// Gives `bytes` to the guest and returns how many were taken; the rest is for after the
    /// next `on_room`.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut port = self.lock();
        let taken = bytes
            .len()
            .min(INPUT_CAPACITY - port.input.len().min(INPUT_CAPACITY));
        port.input.extend(bytes.iter().take(taken));
        port.feed();
        taken
    }

    /// The state of the port, as a message.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let port = self.lock();
        let registers = port.uart.state();
        let state = SerialState {
            registers: vec![
                registers.baud_divisor_low,
                registers.baud_divisor_high,
                registers.interrupt_enable,
                registers.interrupt_identification,
                registers.line_control,
                registers.line_status,
                registers.modem_control,
                registers.modem_status,
                registers.scratch,
            ],
            fifo: registers.in_buffer,
            input: port.input.iter().copied().collect(),
        };
        state.encode_to_vec()
    }

    /// Takes back what [`Self::save`] gave.
    ///
    /// # Errors
    /// `InvalidData` when `state` is not of a serial port.
    pub fn restore(&self, state: &[u8]) -> io::Result<()> {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let state = SerialState::decode(state).map_err(|error| invalid(error.to_string()))?;
        let registers = state
            .registers()
            .ok_or_else(|| invalid("wrong registers".to_owned()))?;
        let mut port = self.lock();
        let (line, output) = (
            port.uart.interrupt_evt().clone(),
            port.uart.writer().clone(),
        );
        let uart = Uart::from_state(&registers, line, NoEvents, output)
            .map_err(|error| invalid(error.to_string()))?;
        *port = Port {
            uart,
            input: state.input.into_iter().take(INPUT_CAPACITY).collect(),
        };
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Port> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let (Ok(offset), [value]) = (u8::try_from(offset), &mut *data) else {
            data.fill(0xff);
            return;
        };
        let mut port = self.lock();
        *value = port.uart.read(offset);
        let moved = port.feed();
        drop(port);
        if moved {
            (self.on_room)();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(offset), &[value]) = (u8::try_from(offset), data) {
            let mut port = self.lock();
            // The sink cannot fail, and for a failing interrupt line there is no remedy.
            let _ = port.uart.write(offset, value);
            port.feed();
        }
    }
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct SerialState {
    /// Divisor low and high, interrupt enable and identification, line control and status,
    /// modem control and status, scratch.
    #[prost(bytes = "vec", tag = "1")]
    registers: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    fifo: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    input: Vec<u8>,
}

impl SerialState {
    fn registers(&self) -> Option<Registers> {
        let &[
            low,
            high,
            enable,
            identification,
            lcr,
            lsr,
            mcr,
            msr,
            scratch,
        ] = self.registers.as_slice()
        else {
            return None;
        };
        Some(Registers {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: enable,
            interrupt_identification: identification,
            line_control: lcr,
            line_status: lsr,
            modem_control: mcr,
            modem_status: msr,
            scratch,
            in_buffer: self.fifo.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct CountedLine(AtomicUsize);

    impl IrqLine for CountedLine {
        fn trigger(&self) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    #[derive(Clone, Default)]
    struct Printed(Arc<Mutex<Vec<u8>>>);

    impl SerialSink for Printed {
        fn put(&self, byte: u8) {
            self.0.lock().unwrap().push(byte);
        }
    }

    struct Fixture {
        serial: Serial,
        line: Arc<CountedLine>,
        printed: Printed,
        room: Arc<AtomicUsize>,
    }

    fn fixture() -> Fixture {
        let line = Arc::new(CountedLine::default());
        let printed = Printed::default();
        let room = Arc::new(AtomicUsize::new(0));
        let told = Arc::clone(&room);
        let on_room = Box::new(move || {
            told.fetch_add(1, Ordering::SeqCst);
        });
        let serial = Serial::new(line.clone(), Arc::new(printed.clone()), on_room);
        Fixture {
            serial,
            line,
            printed,
            room,
        }
    }

    fn read(serial: &Serial, offset: u64) -> u8 {
        let mut data = [0];
        serial.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn printed_bytes_reach_the_sink() {
        let Fixture {
            serial, printed, ..
        } = fixture();
        b"hello".iter().for_each(|byte| serial.write(0, &[*byte]));
        serial.write(0, b"ab");
        assert_eq!(*printed.0.lock().unwrap(), b"hello");
        assert_eq!(
            read(&serial, 5) & 0x60,
            0x60,
            "the transmitter is always empty"
        );
    }

    #[test]
    fn input_arrives_whole_although_it_is_longer_than_the_fifo() {
        let Fixture {
            serial, line, room, ..
        } = fixture();
        serial.write(1, &[1]);
        let text: Vec<u8> = (0..200).collect();
        assert_eq!(serial.input(&text), 200);
        assert!(line.0.load(Ordering::SeqCst) > 0);
        let mut got = Vec::new();
        while read(&serial, 5) & 1 == 1 {
            got.push(read(&serial, 0));
        }
        assert_eq!(got, text);
        assert!(room.load(Ordering::SeqCst) > 0);
    }

    #[test]
    fn a_guest_that_does_not_read_stops_the_input() {
        let Fixture { serial, .. } = fixture();
        let taken = serial.input(&vec![7; 2 * INPUT_CAPACITY]);
        assert_eq!(taken, INPUT_CAPACITY);
        let rest = serial.input(&vec![7; INPUT_CAPACITY]);
        assert!(
            rest <= 64,
            "only what moved into the UART's own queue became free"
        );
        assert_eq!(serial.input(b"x"), 0);
    }

    #[test]
    fn registers_and_waiting_input_survive_a_restore() {
        let Fixture { serial, .. } = fixture();
        serial.write(1, &[1]);
        serial.write(7, &[0x5a]);
        serial.input(&[9; 100]);
        let state = serial.save();
        let Fixture { serial, .. } = fixture();
        serial.restore(&state).unwrap();
        assert_eq!(serial.save(), state);
        assert_eq!(read(&serial, 7), 0x5a);
        assert_eq!((0..100).filter(|_| read(&serial, 0) == 9).count(), 100);
        assert!(serial.restore(b"\x0a\x01\x00").is_err());
    }
}
