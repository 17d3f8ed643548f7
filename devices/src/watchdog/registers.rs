//! The registers (Intel 6300ESB I/O controller hub data sheet, chapter 16), without a clock.

use std::time::Duration;

// Offsets in the BAR.
const TIMER1: u64 = 0x00;
const TIMER2: u64 = 0x04;
const RELOAD: u64 = 0x0c;

// Offsets in the configuration space, and what is in there.
pub(super) const CONFIG: u16 = 0x60;
pub(super) const LOCK: u16 = 0x68;
const CONFIG_NO_REBOOT: u16 = 1 << 5;
const CONFIG_FAST: u16 = 1 << 2;
const CONFIG_BITS: u16 = 0b10_0111;
const LOCKED: u8 = 1 << 0;
const ENABLED: u8 = 1 << 1;
const FREE_RUNNING: u8 = 1 << 2;

// The reload register.
const RESTART: u16 = 1 << 8;
const TIMED_OUT: u16 = 1 << 9;
/// Written one after the other they let the next write through.
const UNLOCK: [u16; 2] = [0x80, 0x86];

const PRELOAD_MAX: u32 = 0xf_ffff;
/// A cycle of the PCI clock in nanoseconds.
const CYCLE_NS: u64 = 30;
/// Cycles of one count, as a shift: about a millisecond, or a microsecond.
const SLOW_SHIFT: u32 = 15;
const FAST_SHIFT: u32 = 5;

/// What a write did to the time that is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// It begins anew.
    Restart,
    /// The watchdog sleeps.
    Stop,
}

/// The registers' content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registers {
    timers: [u32; 2],
    config: u16,
    lock: u8,
    /// How much of [`UNLOCK`] was written.
    unlocked: usize,
    timed_out: bool,
}

impl Registers {
    /// As they come up.
    pub(super) fn new() -> Self {
        Self {
            timers: [PRELOAD_MAX; 2],
            config: 0,
            lock: 0,
            unlocked: 0,
            timed_out: false,
        }
    }

    /// The machine's reset. That the watchdog was its cause stays to be read.
    pub(super) fn power_on(&mut self) {
        let timed_out = self.timed_out;
        *self = Self {
            timed_out,
            ..Self::new()
        };
    }

    /// Nobody has restarted the watchdog in time.
    pub(super) fn expire(&mut self) {
        self.timed_out = true;
    }

    /// How long the guest may take; `None` while the watchdog sleeps. The first timer's interrupt
    /// is not there: what counts is the sum.
    pub(super) fn patience(&self) -> Option<Duration> {
        let watches = self.lock & ENABLED != 0 && self.lock & FREE_RUNNING == 0;
        if !watches || self.config & CONFIG_NO_REBOOT != 0 {
            return None;
        }
        let shift = if self.config & CONFIG_FAST == 0 {
            SLOW_SHIFT
        } else {
            FAST_SHIFT
        };
        let counts: u64 = self.timers.map(u64::from).iter().sum();
        Some(Duration::from_nanos((counts * CYCLE_NS) << shift))
    }

    /// Reads the BAR.
    pub(super) fn read_bar(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let [timer1, timer2] = self.timers;
        let value = match offset {
            TIMER1 => timer1,
            TIMER2 => timer2,
            RELOAD => u32::from(if self.timed_out { TIMED_OUT } else { 0 }),
            _ => return,
        };
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    /// Writes the BAR with an access of 2 or 4 bytes.
    pub(super) fn write_bar(&mut self, offset: u64, data: &[u8]) -> Effect {
        let value = match *data {
            [a, b] => u32::from(u16::from_le_bytes([a, b])),
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
            _ => return Effect::None,
        };
        let [low, high, ..] = value.to_le_bytes();
        let short = u16::from_le_bytes([low, high]);
        if offset == RELOAD && UNLOCK.get(self.unlocked) == Some(&short) {
            self.unlocked += 1;
            return Effect::None;
        }
        let unlocked = std::mem::take(&mut self.unlocked) == UNLOCK.len();
        if !unlocked {
            return Effect::None;
        }
        let [timer1, timer2] = &mut self.timers;
        match offset {
            TIMER1 => *timer1 = value & PRELOAD_MAX,
            TIMER2 => *timer2 = value & PRELOAD_MAX,
            RELOAD => {
                if short & TIMED_OUT != 0 {
                    self.timed_out = false;
                }
                if short & RESTART != 0 {
                    return Effect::Restart;
                }
            }
            _ => {}
        }
        Effect::None
    }

    /// The configuration register.
    pub(super) fn config(&self) -> u16 {
        self.config
    }

    /// Writes the configuration register.
    pub(super) fn set_config(&mut self, value: u16) -> Effect {
        let before = self.patience();
        self.config = value & CONFIG_BITS;
        self.effect(before)
    }

    /// The lock register.
    pub(super) fn lock(&self) -> u8 {
        self.lock
    }

    /// Writes the lock register, which cannot be written any more once it says "locked".
    pub(super) fn set_lock(&mut self, value: u8) -> Effect {
        let before = self.patience();
        if self.lock & LOCKED == 0 {
            self.lock = value & (LOCKED | ENABLED | FREE_RUNNING);
        }
        self.effect(before)
    }

    fn effect(&self, before: Option<Duration>) -> Effect {
        match (before, self.patience()) {
            (before, now) if before == now => Effect::None,
            (_, Some(_)) => Effect::Restart,
            (_, None) => Effect::Stop,
        }
    }

    /// As numbers, for a saved state.
    pub(super) fn save(&self) -> [u32; 5] {
        let [timer1, timer2] = self.timers;
        [
            timer1,
            timer2,
            self.config.into(),
            self.lock.into(),
            self.timed_out.into(),
        ]
    }

    /// Takes back what [`Self::save`] gave; of anything else, what fits.
    pub(super) fn restore(saved: &[u32]) -> Self {
        let at = |index: usize| saved.get(index).copied().unwrap_or(0);
        let narrow = |value| u16::try_from(value).unwrap_or(0);
        let [lock, _] = narrow(at(3)).to_le_bytes();
        Self {
            timers: [at(0), at(1)].map(|timer| timer & PRELOAD_MAX),
            config: narrow(at(2)) & CONFIG_BITS,
            lock: lock & (LOCKED | ENABLED | FREE_RUNNING),
            unlocked: 0,
            timed_out: at(4) != 0,
        }
    }
}
