//! How much of the time the processors had nothing to do. On the instruction clock idle time runs by
//! the wall clock, so that figures mean something only where there is little of it.

use std::fs;

use anyhow::{Context as _, Result};

/// Time of all processors since they were switched on, in the kernel's ticks.
pub struct ProcessorTime {
    idle: f64,
    total: f64,
}

impl ProcessorTime {
    /// The time so far.
    pub fn now() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().context("an empty /proc/stat")?;
        // User, nice, system, idle, waiting for I/O, and more (proc_stat(5)).
        let words = line.split_whitespace().skip(1).map(str::parse);
        let ticks = words.collect::<Result<Vec<f64>, _>>()?;
        let idle = ticks.iter().skip(3).take(2).sum();
        Ok(Self {
            idle,
            total: ticks.iter().sum(),
        })
    }

    /// Idle time in percent of all time since `before`.
    pub fn idle_share_since(&self, before: &Self) -> f64 {
        (self.idle - before.idle) * 100.0 / (self.total - before.total).max(1.0)
    }
}
