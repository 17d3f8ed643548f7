//! When the steps of a machine's start were done.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// A step of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// What was done.
    pub name: &'static str,
    /// When it was done: microseconds since the start began.
    pub at_us: u64,
}

/// Collects phases while a machine starts.
pub(crate) struct Timeline {
    begin: Instant,
    phases: Mutex<Vec<Phase>>,
}

impl Timeline {
    pub(crate) fn begin() -> Self {
        Self {
            begin: Instant::now(),
            phases: Mutex::new(Vec::new()),
        }
    }

    /// Notes that the step `name` is done.
    pub(crate) fn done(&self, name: &'static str) {
        let at_us = u64::try_from(self.begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.phases
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Phase { name, at_us });
    }

    pub(crate) fn phases(&self) -> Vec<Phase> {
        self.phases
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
