//! Interrupts that are counted instead of sent.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex};

use super::TIMEOUT;
use crate::virtio::device::VirtioInterrupt;

/// Counts the interrupts of a device and wakes who waits for one.
#[derive(Default)]
pub struct RecordedInterrupt {
    seen: Mutex<Interrupts>,
    changed: Condvar,
}

/// What a device has signalled so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interrupts {
    /// Queue interrupts, by queue index.
    pub queues: HashMap<u16, usize>,
    /// Configuration change interrupts.
    pub config: usize,
    /// Causes of `DEVICE_NEEDS_RESET`.
    pub needs_reset: Vec<String>,
}

impl RecordedInterrupt {
    /// What was signalled so far.
    #[must_use]
    pub fn seen(&self) -> Interrupts {
        self.seen.lock().unwrap().clone()
    }

    /// Waits until `reached` holds.
    ///
    /// # Panics
    /// After [`TIMEOUT`].
    pub fn wait_until(&self, reached: impl Fn(&Interrupts) -> bool) {
        let seen = self.seen.lock().unwrap();
        let wait = self
            .changed
            .wait_timeout_while(seen, TIMEOUT, |seen| !reached(seen));
        let (seen, timeout) = wait.unwrap();
        assert!(
            !timeout.timed_out(),
            "the device did not signal in time: {seen:?}"
        );
    }

    fn record(&self, change: impl FnOnce(&mut Interrupts)) {
        change(&mut self.seen.lock().unwrap());
        self.changed.notify_all();
    }
}

impl VirtioInterrupt for RecordedInterrupt {
    fn queue(&self, index: u16) {
        self.record(|seen| *seen.queues.entry(index).or_default() += 1);
    }
    fn config(&self) {
        self.record(|seen| seen.config += 1);
    }
    fn needs_reset(&self, cause: &str) {
        self.record(|seen| seen.needs_reset.push(cause.to_owned()));
    }
}
