//! A watchdog that Linux has a driver for in every distribution: the one of Intel's 6300ESB. A
//! guest that has started it and does not come back in time has it bark.

mod registers;

use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prost::{DecodeError, Message as _};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use self::registers::{Effect, Registers};
use crate::bus::BusDevice;
use crate::event_loop::{EventLoop, EventSet, Handler, HandlerId, Interest, Watch};
use crate::pci::{Class, ConfigSpace, Identity, PciDevice, PciFunction};
use crate::virtio::QueueHandle;

/// Length of the BAR in bytes.
pub const BAR_LEN: u64 = 0x10;

const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0x25ab,
    revision: 0,
    class: Class {
        base: 0x08,
        sub: 0x80,
        interface: 0x00,
    },
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

const KICK: u32 = 0;
const TICK: u32 = 1;

/// Told that the guest did not come back in time, on the thread that serves the device; it must
/// not block.
pub type OnExpiry = Box<dyn Fn() + Send + Sync>;

struct State {
    config: ConfigSpace,
    registers: Registers,
    /// When it expires, while it watches and is not paused.
    deadline: Option<Instant>,
    /// What was left when it was paused.
    paused: Option<Option<Duration>>,
}

struct Shared {
    limit: Duration,
    state: Mutex<State>,
    /// Tells the handler of a deadline that may be earlier than the one it waits for.
    kick: EventFd,
}

/// The watchdog.
pub struct Watchdog {
    bar_address: u64,
    shared: Arc<Shared>,
    io: EventLoop,
    handler: HandlerId,
}

impl Watchdog {
    /// A watchdog that sleeps, with its BAR at `bar_address`. Once its guest has started it, it
    /// expires after the time the guest has chosen and after `limit` at the latest. Its clock runs
    /// on `io`.
    ///
    /// # Errors
    /// When the host has no timer or event file to give.
    pub fn new(
        limit: Duration,
        io: EventLoop,
        bar_address: u64,
        on_expiry: OnExpiry,
    ) -> io::Result<Self> {
        let mut config = ConfigSpace::new(IDENTITY);
        config.set_bar(bar_address, BAR_LEN);
        let shared = Arc::new(Shared {
            limit,
            state: Mutex::new(State {
                config,
                registers: Registers::new(),
                deadline: None,
                paused: None,
            }),
            kick: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        });
        let handler = io.attach(Box::new(Clock {
            shared: Arc::clone(&shared),
            timer: TimerFd::new().map_err(io::Error::from)?,
            on_expiry,
        }))?;
        Ok(Self {
            bar_address,
            shared,
            io,
            handler,
        })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.io.detach(self.handler));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a register access act on the clock. A deadline that moves on needs no kick: the clock
    /// looks again when the old one is reached.
    fn apply(&self, mut state: MutexGuard<'_, State>, effect: Effect) {
        let before = state.deadline;
        match effect {
            Effect::None => return,
            Effect::Stop => state.deadline = None,
            Effect::Restart => {
                let patience = state.registers.patience();
                let left = patience.map(|patience| patience.min(self.limit));
                match &mut state.paused {
                    Some(paused) => *paused = left,
                    None => state.deadline = left.map(|left| Instant::now() + left),
                }
            }
        }
        let earlier = match (before, state.deadline) {
            (None, Some(_)) => true,
            (Some(before), Some(now)) => now < before,
            (_, None) => false,
        };
        drop(state);
        if earlier {
            self.kick();
        }
    }

    fn kick(&self) {
        // Full only after 2^64 - 1 kicks that nobody took.
        let _ = self.kick.write(1);
    }
}

impl PciFunction for Watchdog {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let state = self.shared.lock();
        state.config.read(offset, data);
        let bytes = match offset {
            registers::CONFIG => state.registers.config().to_le_bytes(),
            registers::LOCK => [state.registers.lock(), 0],
            _ => return,
        };
        for (to, from) in data.iter_mut().zip(bytes) {
            *to = from;
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let mut state = self.shared.lock();
        let effect = match (offset, data) {
            (registers::CONFIG, &[low, high, ..]) => {
                state.registers.set_config(u16::from_le_bytes([low, high]))
            }
            (registers::LOCK, &[value, ..]) => state.registers.set_lock(value),
            _ => {
                state.config.write(offset, data);
                Effect::None
            }
        };
        self.shared.apply(state, effect);
    }
}

impl BusDevice for Watchdog {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.shared.lock();
        if state.config.decodes_bar() {
            state.registers.read_bar(offset, data);
        } else {
            data.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.shared.lock();
        if state.config.decodes_bar() {
            let effect = state.registers.write_bar(offset, data);
            self.shared.apply(state, effect);
        }
    }
}

impl PciDevice for Watchdog {
    fn bar(&self) -> (u64, u64) {
        (self.bar_address, BAR_LEN)
    }

    fn power_on(&self) {
        let mut state = self.shared.lock();
        state.config.reset();
        state.registers.power_on();
        state.deadline = None;
        if let Some(left) = &mut state.paused {
            *left = None;
        }
    }

    fn pause(&self) {
        let mut state = self.shared.lock();
        if state.paused.is_none() {
            let deadline = state.deadline.take();
            let now = Instant::now();
            state.paused = Some(deadline.map(|deadline| deadline.saturating_duration_since(now)));
        }
    }

    fn resume(&self) {
        let mut state = self.shared.lock();
        let left = state.paused.take().flatten();
        state.deadline = left.map(|left| Instant::now() + left);
        drop(state);
        self.shared.kick();
    }

    fn save(&self) -> Vec<u8> {
        let state = self.shared.lock();
        let left = state.paused.flatten();
        let left_us = left.map(|left| u64::try_from(left.as_micros()).unwrap_or(u64::MAX));
        let saved = WatchdogState {
            config: state.config.registers().to_vec(),
            registers: state.registers.save().to_vec(),
            left_us,
        };
        saved.encode_to_vec()
    }

    fn restore(&self, bytes: &[u8]) -> Result<(), DecodeError> {
        let saved = WatchdogState::decode(bytes)?;
        let mut state = self.shared.lock();
        state.config.write(0, &saved.config);
        state.registers = Registers::restore(&saved.registers);
        state.deadline = None;
        let left = saved.left_us.map(Duration::from_micros);
        state.paused = Some(left.map(|left| left.min(self.shared.limit)));
        Ok(())
    }
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct WatchdogState {
    /// The PCI configuration space.
    #[prost(bytes = "vec", tag = "1")]
    config: Vec<u8>,
    /// [`Registers::save`].
    #[prost(uint32, repeated, tag = "2")]
    registers: Vec<u32>,
    /// Time until it expires, in microseconds, while it watches.
    #[prost(uint64, optional, tag = "3")]
    left_us: Option<u64>,
}

/// The watchdog's half on the event loop: guests' threads may set no timer.
struct Clock {
    shared: Arc<Shared>,
    timer: TimerFd,
    on_expiry: OnExpiry,
}

impl Clock {
    fn look(&mut self) -> io::Result<()> {
        let mut state = self.shared.lock();
        let Some(deadline) = state.deadline else {
            return Ok(());
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            state.deadline = None;
            state.registers.expire();
            drop(state);
            (self.on_expiry)();
            return Ok(());
        }
        drop(state);
        self.timer.reset(left, None).map_err(io::Error::from)
    }
}

impl Handler for Clock {
    fn watch(&self) -> Vec<Watch> {
        let watch = |fd, token| Watch {
            fd,
            token,
            events: EventSet::IN,
        };
        vec![
            watch(self.shared.kick.as_raw_fd(), KICK),
            watch(self.timer.as_raw_fd(), TICK),
        ]
    }

    fn ready(&mut self, token: u32, _events: EventSet, _interest: &mut Interest<'_>) {
        // Only clears what is readable; the timer not by a read, which waits when it was set anew since.
        if token == TICK {
            let _ = self.timer.clear();
        } else {
            let _ = self.shared.kick.read();
        }
        if let Err(error) = self.look() {
            tracing::error!(%error, "the watchdog's timer fails; it does not watch");
        }
    }

    fn into_queues(self: Box<Self>) -> Vec<QueueHandle> {
        Vec::new()
    }

    fn panicked(&self, cause: &str) {
        tracing::error!(cause, "the watchdog is gone");
    }
}

#[cfg(test)]
mod tests;
