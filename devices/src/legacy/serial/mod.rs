//! A 16550A serial port between a guest and a [`Terminal`].
//!
//! Nothing waits on a vCPU thread. While a reader of the terminal has no room, the transmitter is
//! not empty, and its interrupt comes when there is room again. Input waits in the terminal until
//! the receiver has room for it.

mod uart;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use prost::Message as _;

use self::uart::{Received, Uart, Wire};
use crate::bus::BusDevice;
use crate::console::{ConsoleDevice, Terminal};
use crate::interrupt::IrqLine;

/// Length in bytes of the port range.
pub const LEN: u64 = 8;

struct Port {
    uart: Uart,
    /// The line was held down; the receiver had no room for it yet.
    breaks: bool,
}

impl Port {
    /// Moves waiting input to the receiver as far as it has room.
    fn take_input(&mut self, terminal: &Terminal) {
        if self.breaks && self.uart.room() > 0 {
            self.breaks = false;
            self.uart.receive(Received::Break);
        }
        let mut bytes = [0; uart::FIFO_LEN];
        let room = bytes.len().min(self.uart.room());
        let count = bytes
            .get_mut(..room)
            .map_or(0, |bytes| terminal.take_input(bytes));
        for &byte in bytes.iter().take(count) {
            self.uart.receive(Received::Byte(byte));
        }
    }
}

impl Wire for &Terminal {
    fn send(&mut self, byte: u8) -> bool {
        self.offer(&[byte]) == 1
    }

    fn push(&mut self, byte: u8) {
        self.force(&[byte]);
    }
}

/// The serial port.
pub struct Serial {
    port: Mutex<Port>,
    line: Option<Arc<dyn IrqLine>>,
    terminal: Terminal,
}

impl Serial {
    /// A port of `terminal` that interrupts through `line`. Without one it is for a kernel's
    /// messages only, and what is typed is left to another device.
    #[must_use]
    pub fn new(line: Option<Arc<dyn IrqLine>>, terminal: Terminal) -> Arc<Self> {
        let serial = Arc::new(Self {
            port: Mutex::new(Port {
                uart: Uart::default(),
                breaks: false,
            }),
            line,
            terminal,
        });
        let device: Weak<dyn ConsoleDevice> = Arc::<Self>::downgrade(&serial);
        serial.terminal.attach(device);
        serial
    }

    /// Holds the line down for a moment: Linux takes what is typed next as a system request.
    pub fn send_break(&self) {
        let mut port = self.lock();
        port.breaks = true;
        self.feed(&mut port);
        self.interrupt(port);
    }

    /// Back to how the port came up. What the guest has printed is not lost.
    pub fn reset(&self) {
        let mut port = self.lock();
        let (_, sending) = port.uart.fifos();
        self.terminal.force(&sending);
        *port = Port {
            uart: Uart::default(),
            breaks: false,
        };
    }

    /// The state of the port and the input that waits for it, as a message.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let port = self.lock();
        let (received, sending) = port.uart.fifos();
        let state = SerialState {
            registers: port.uart.registers(),
            received: received.into_iter().map(to_number).collect(),
            input: self.terminal.waiting_input(),
            sending,
            breaks: port.breaks,
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
        let received = state.received.into_iter().map(from_number).collect();
        let uart = Uart::from_state(&state.registers, received, state.sending);
        let uart = uart.ok_or_else(|| invalid("wrong registers".to_owned()))?;
        let mut port = self.lock();
        *port = Port {
            uart,
            breaks: state.breaks,
        };
        drop(port);
        // The terminal of a new machine has room for what another one had.
        let _ = self.terminal.input(&state.input);
        self.output_room();
        Ok(())
    }

    fn feed(&self, port: &mut Port) {
        if self.line.is_some() {
            port.take_input(&self.terminal);
        }
    }

    /// Raises the line for what is new. A failing line has no remedy: the guest may poll.
    fn interrupt(&self, mut port: MutexGuard<'_, Port>) {
        if let (true, Some(line)) = (port.uart.takes_line_up(), &self.line) {
            let _ = line.trigger();
        }
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
        self.feed(&mut port);
        self.interrupt(port);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(offset), &[value]) = (u8::try_from(offset), data) {
            let mut port = self.lock();
            port.uart.write(offset, value, &mut &self.terminal);
            self.feed(&mut port);
            self.interrupt(port);
        }
    }
}

impl ConsoleDevice for Serial {
    fn output_room(&self) {
        let mut port = self.lock();
        port.uart.flush(&mut &self.terminal);
        self.interrupt(port);
    }

    fn input_ready(&self) {
        let mut port = self.lock();
        self.feed(&mut port);
        self.interrupt(port);
    }
}

/// How a saved state tells a break from a byte.
const BREAK: u32 = 0x100;

fn to_number(received: Received) -> u32 {
    match received {
        Received::Byte(byte) => byte.into(),
        Received::Break => BREAK,
    }
}

fn from_number(number: u32) -> Received {
    u8::try_from(number).map_or(Received::Break, Received::Byte)
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct SerialState {
    /// [`Uart::registers`].
    #[prost(bytes = "vec", tag = "1")]
    registers: Vec<u8>,
    /// Bytes, and [`BREAK`].
    #[prost(uint32, repeated, tag = "2")]
    received: Vec<u32>,
    #[prost(bytes = "vec", tag = "3")]
    input: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    sending: Vec<u8>,
    #[prost(bool, tag = "5")]
    breaks: bool,
}

#[cfg(test)]
mod tests;
