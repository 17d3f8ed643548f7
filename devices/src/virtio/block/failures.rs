//! The log of failed operations: a guest can have as many of them as it likes.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// At most one line in this time.
const INTERVAL: Duration = Duration::from_secs(10);

/// Hears of a disk's failures, as often as they are logged.
pub type FailureListener = Box<dyn Fn(&io::Error) + Send + Sync>;

#[derive(Debug, Default)]
struct State {
    logged: Option<Instant>,
    suppressed: u64,
}

/// Logs some of a disk's failures, and how many it did not log.
#[derive(Default)]
pub struct FailureLog {
    listener: Option<FailureListener>,
    state: Mutex<State>,
}

impl FailureLog {
    /// A log that `listener` hears of as well.
    pub fn new(listener: FailureListener) -> Self {
        Self {
            listener: Some(listener),
            state: Mutex::default(),
        }
    }

    /// An operation failed with `error`.
    pub fn note(&self, error: &io::Error) {
        if let Some(suppressed) = self.count(Instant::now()) {
            tracing::warn!(%error, suppressed, "a disk's operation failed");
            if let Some(listener) = &self.listener {
                listener(error);
            }
        }
    }

    /// Whether to log a failure at `now`: then, how many were not logged before it.
    fn count(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = |last| now.saturating_duration_since(last) >= INTERVAL;
        if state.logged.is_some_and(|last| !is_due(last)) {
            state.suppressed += 1;
            return None;
        }
        state.logged = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_in_ten_seconds_is_logged() {
        let log = FailureLog::default();
        let start = Instant::now();
        let at = |seconds| log.count(start + Duration::from_secs(seconds));
        assert_eq!(
            [at(0), at(0), at(9), at(10), at(11), at(25)],
            [Some(0), None, None, Some(2), None, Some(1)]
        );
    }
}
