//! The registers of a 16550A (PC16550D data sheet, section 8), without what is around them.
//!
//! The transmitter is as fast as whoever takes its bytes: a byte that is taken leaves the FIFO it
//! was written to at once; one that is not stays, and the transmitter is not empty until it goes.

use std::collections::VecDeque;

/// Bytes in each of the two FIFOs.
pub const FIFO_LEN: usize = 16;

const DATA: u8 = 0;
const INTERRUPT_ENABLE: u8 = 1;
/// Read; written it is the FIFO control register.
const INTERRUPT_IDENTIFICATION: u8 = 2;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;
const MODEM_STATUS: u8 = 6;
const SCRATCH: u8 = 7;

// Interrupt enable, and causes as a set of its bits.
const RECEIVED: u8 = 1 << 0;
const TRANSMITTER_EMPTY: u8 = 1 << 1;
const LINE_CHANGED: u8 = 1 << 2;
const ENABLE_BITS: u8 = 0x0f;

// Interrupt identification.
const NO_INTERRUPT: u8 = 0x01;
const ID_TRANSMITTER: u8 = 0x02;
const ID_RECEIVED: u8 = 0x04;
const ID_LINE: u8 = 0x06;
const ID_TIMEOUT: u8 = 0x0c;
const ID_FIFOS: u8 = 0xc0;

// FIFO control.
const FIFO_ENABLE: u8 = 1 << 0;
const FIFO_CLEAR_RECEIVER: u8 = 1 << 1;
const FIFO_CLEAR_TRANSMITTER: u8 = 1 << 2;
const FIFO_TRIGGER_SHIFT: u8 = 6;
const TRIGGER_LEVELS: [usize; 4] = [1, 4, 8, 14];

const DIVISOR_ACCESS: u8 = 1 << 7;

// Modem control.
const DATA_TERMINAL_READY: u8 = 1 << 0;
const REQUEST_TO_SEND: u8 = 1 << 1;
const OUT1: u8 = 1 << 2;
const OUT2: u8 = 1 << 3;
const LOOPBACK: u8 = 1 << 4;
const MODEM_CONTROL_BITS: u8 = 0x1f;

// Line status.
const DATA_READY: u8 = 1 << 0;
const OVERRUN: u8 = 1 << 1;
const BREAK: u8 = 1 << 4;
const HOLDING_EMPTY: u8 = 1 << 5;
const ALL_EMPTY: u8 = 1 << 6;

// Modem status.
const CLEAR_TO_SEND: u8 = 1 << 4;
const DATA_SET_READY: u8 = 1 << 5;
const RING: u8 = 1 << 6;
const CARRIER: u8 = 1 << 7;

/// 115200 baud.
const DIVISOR: [u8; 2] = [1, 0];
/// Linux's handler gives up on a port that interrupts 512 times in a row, and never looks at it
/// again if the line does not go up meanwhile. A guest that prints without end is therefore let
/// out of its handler now and then, and called back at once.
const PASSES_MAX: u16 = 128;

/// A byte in the receiver's FIFO, or a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A byte.
    Byte(u8),
    /// The line was held down: it reads as a zero with a mark in the line status.
    Break,
}

/// Takes what the transmitter sends.
pub trait Wire {
    /// Takes a byte, or not now.
    fn send(&mut self, byte: u8) -> bool;
    /// Takes a byte in any case: the guest has not waited for the transmitter.
    fn push(&mut self, byte: u8);
}

/// The registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uart {
    divisor: [u8; 2],
    enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    received: VecDeque<Received>,
    sending: VecDeque<u8>,
    overrun: bool,
    /// The transmitter has become empty and the guest has not heard of it.
    emptied: bool,
    passes: u16,
    /// Causes that the line was raised for.
    raised: u8,
}

impl Default for Uart {
    fn default() -> Self {
        Self {
            divisor: DIVISOR,
            enable: 0,
            fifo_control: 0,
            line_control: 0b11,
            modem_control: OUT2,
            scratch: 0,
            received: VecDeque::new(),
            sending: VecDeque::new(),
            overrun: false,
            emptied: false,
            passes: 0,
            raised: 0,
        }
    }
}

impl Uart {
    /// Reads the register at `offset`.
    pub fn read(&mut self, offset: u8) -> u8 {
        let [low, high] = self.divisor;
        match offset {
            DATA if self.accesses_divisor() => low,
            INTERRUPT_ENABLE if self.accesses_divisor() => high,
            DATA => match self.received.pop_front() {
                Some(Received::Byte(byte)) => byte,
                Some(Received::Break) | None => 0,
            },
            INTERRUPT_ENABLE => self.enable,
            INTERRUPT_IDENTIFICATION => self.identify(),
            LINE_CONTROL => self.line_control,
            MODEM_CONTROL => self.modem_control,
            LINE_STATUS => {
                let status = self.line_status();
                self.overrun = false;
                status
            }
            MODEM_STATUS => self.modem_status(),
            SCRATCH => self.scratch,
            _ => 0xff,
        }
    }

    /// Writes the register at `offset`; what is sent by it goes to `wire`.
    pub fn write(&mut self, offset: u8, value: u8, wire: &mut impl Wire) {
        let [low, high] = &mut self.divisor;
        match offset {
            DATA if self.line_control & DIVISOR_ACCESS != 0 => *low = value,
            INTERRUPT_ENABLE if self.line_control & DIVISOR_ACCESS != 0 => *high = value,
            DATA if self.is_looped() => {
                self.receive(Received::Byte(value));
                self.emptied = true;
            }
            DATA => self.send(value, wire),
            INTERRUPT_ENABLE => {
                let new = value & ENABLE_BITS & !self.enable;
                self.enable = value & ENABLE_BITS;
                if new & TRANSMITTER_EMPTY != 0 && self.sending.is_empty() {
                    self.emptied = true;
                }
            }
            INTERRUPT_IDENTIFICATION => self.control_fifos(value, wire),
            LINE_CONTROL => self.line_control = value,
            MODEM_CONTROL => self.modem_control = value & MODEM_CONTROL_BITS,
            SCRATCH => self.scratch = value,
            _ => {}
        }
    }

    /// Sends on what the wire did not take before.
    pub fn flush(&mut self, wire: &mut impl Wire) {
        if self.sending.is_empty() {
            return;
        }
        while let Some(&byte) = self.sending.front() {
            if !wire.send(byte) {
                return;
            }
            self.sending.pop_front();
        }
        self.emptied = true;
    }

    /// How much can be received now.
    pub fn room(&self) -> usize {
        if self.is_looped() {
            return 0;
        }
        self.capacity().saturating_sub(self.received.len())
    }

    /// Receives; beyond [`Self::room`] it is an overrun.
    pub fn receive(&mut self, received: Received) {
        if self.received.len() < self.capacity() {
            self.received.push_back(received);
        } else {
            self.overrun = true;
        }
    }

    /// Whether the interrupt line goes up: there is a cause that it was not raised for yet.
    pub fn takes_line_up(&mut self) -> bool {
        let causes = self.causes();
        let rises = causes & !self.raised != 0;
        self.raised = causes;
        rises
    }

    /// As numbers, for a saved state.
    pub fn registers(&self) -> Vec<u8> {
        let [low, high] = self.divisor;
        let flags = u8::from(self.overrun) | u8::from(self.emptied) << 1;
        vec![
            low,
            high,
            self.enable,
            self.fifo_control,
            self.line_control,
            self.modem_control,
            self.scratch,
            flags,
            self.raised,
        ]
    }

    /// What is in the FIFOs: received, and still to be sent.
    pub fn fifos(&self) -> (Vec<Received>, Vec<u8>) {
        let received = self.received.iter().copied();
        (received.collect(), self.sending.iter().copied().collect())
    }

    /// The port with these [`Self::registers`] and [`Self::fifos`]; `None` when they are of no
    /// such port.
    pub fn from_state(registers: &[u8], received: Vec<Received>, sending: Vec<u8>) -> Option<Self> {
        let &[
            low,
            high,
            enable,
            fifo_control,
            line_control,
            modem_control,
            scratch,
            flags,
            raised,
        ] = registers
        else {
            return None;
        };
        (received.len() <= FIFO_LEN && sending.len() <= FIFO_LEN).then(|| Self {
            divisor: [low, high],
            enable: enable & ENABLE_BITS,
            fifo_control,
            line_control,
            modem_control: modem_control & MODEM_CONTROL_BITS,
            scratch,
            received: received.into(),
            sending: sending.into(),
            overrun: flags & 1 != 0,
            emptied: flags & 2 != 0,
            passes: 0,
            raised,
        })
    }

    fn send(&mut self, byte: u8, wire: &mut impl Wire) {
        self.emptied = false;
        if self.sending.is_empty() && wire.send(byte) {
            self.emptied = true;
            return;
        }
        if self.sending.len() >= self.capacity()
            && let Some(oldest) = self.sending.pop_front()
        {
            wire.push(oldest);
        }
        self.sending.push_back(byte);
    }

    fn control_fifos(&mut self, value: u8, wire: &mut impl Wire) {
        let switched = (value ^ self.fifo_control) & FIFO_ENABLE != 0;
        self.fifo_control = value & !(FIFO_CLEAR_RECEIVER | FIFO_CLEAR_TRANSMITTER);
        if switched || value & FIFO_CLEAR_RECEIVER != 0 {
            self.received.clear();
        }
        if (switched || value & FIFO_CLEAR_TRANSMITTER != 0) && !self.sending.is_empty() {
            // It was printed before, and the transcript is to have all that was.
            self.sending.drain(..).for_each(|byte| wire.push(byte));
            self.emptied = true;
        }
    }

    fn has_fifos(&self) -> bool {
        self.fifo_control & FIFO_ENABLE != 0
    }

    fn capacity(&self) -> usize {
        if self.has_fifos() { FIFO_LEN } else { 1 }
    }

    fn is_looped(&self) -> bool {
        self.modem_control & LOOPBACK != 0
    }

    fn accesses_divisor(&self) -> bool {
        self.line_control & DIVISOR_ACCESS != 0
    }

    /// Enabled causes of an interrupt, as bits of the enable register.
    fn causes(&self) -> u8 {
        let mut causes = 0;
        if self.overrun || self.received.front() == Some(&Received::Break) {
            causes |= LINE_CHANGED;
        }
        if !self.received.is_empty() {
            causes |= RECEIVED;
        }
        if self.emptied {
            causes |= TRANSMITTER_EMPTY;
        }
        causes & self.enable
    }

    /// The identification register: the most urgent cause. Reading it is an answer to the
    /// transmitter's.
    fn identify(&mut self) -> u8 {
        let fifos = if self.has_fifos() { ID_FIFOS } else { 0 };
        let causes = self.causes();
        self.passes = if causes == 0 { 0 } else { self.passes + 1 };
        if self.passes >= PASSES_MAX {
            self.passes = 0;
            self.raised = 0;
            return NO_INTERRUPT | fifos;
        }
        let id = if causes & LINE_CHANGED != 0 {
            ID_LINE
        } else if causes & RECEIVED != 0 {
            self.identify_received()
        } else if causes & TRANSMITTER_EMPTY != 0 {
            self.emptied = false;
            ID_TRANSMITTER
        } else {
            NO_INTERRUPT
        };
        id | fifos
    }

    /// Fewer bytes than the trigger level are reported as those that no more came behind.
    fn identify_received(&self) -> u8 {
        let level = usize::from(self.fifo_control >> FIFO_TRIGGER_SHIFT);
        let level = TRIGGER_LEVELS.get(level).copied().unwrap_or(1);
        if self.has_fifos() && self.received.len() < level {
            ID_TIMEOUT
        } else {
            ID_RECEIVED
        }
    }

    fn line_status(&self) -> u8 {
        let mut status = 0;
        if let Some(first) = self.received.front() {
            status |= DATA_READY;
            if *first == Received::Break {
                status |= BREAK;
            }
        }
        if self.overrun {
            status |= OVERRUN;
        }
        if self.sending.is_empty() {
            status |= HOLDING_EMPTY | ALL_EMPTY;
        }
        status
    }

    /// A terminal is there and listens; with the loop closed, the port's own lines.
    fn modem_status(&self) -> u8 {
        if !self.is_looped() {
            return CLEAR_TO_SEND | DATA_SET_READY | CARRIER;
        }
        let lines = [
            (REQUEST_TO_SEND, CLEAR_TO_SEND),
            (DATA_TERMINAL_READY, DATA_SET_READY),
            (OUT1, RING),
            (OUT2, CARRIER),
        ];
        let set = lines
            .iter()
            .filter(|(out, _)| self.modem_control & out != 0);
        set.fold(0, |status, (_, input)| status | input)
    }
}
