//! The guest's clocks.

use std::io;

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

const NS_PER_S: i64 = 1_000_000_000;

/// Nanoseconds since the guest's boot.
#[must_use]
pub fn monotonic_ns() -> u64 {
    u64::try_from(nanoseconds(clock_gettime(ClockId::Monotonic))).unwrap_or_default()
}

/// Nanoseconds since the epoch.
#[must_use]
pub fn wall_ns() -> i64 {
    nanoseconds(clock_gettime(ClockId::Realtime))
}

/// Sets the wall clock, in nanoseconds since the epoch.
///
/// # Errors
///
/// What clock_settime(2) said; EINVAL for a time before the epoch.
pub fn set_wall(ns: i64) -> io::Result<()> {
    let time = Timespec {
        tv_sec: ns.div_euclid(NS_PER_S),
        tv_nsec: ns.rem_euclid(NS_PER_S),
    };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

fn nanoseconds(time: Timespec) -> i64 {
    time.tv_sec
        .saturating_mul(NS_PER_S)
        .saturating_add(time.tv_nsec)
}
