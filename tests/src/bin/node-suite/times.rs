//! How long the cases took: what to look at first when the suite is slow.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many are shown.
const SHOWN: usize = 15;

static TIMES: Mutex<Vec<(Duration, String)>> = Mutex::new(Vec::new());

/// A case's time; taken when dropped.
pub struct Time<'a> {
    name: &'a str,
    start: Instant,
}

impl<'a> Time<'a> {
    pub fn start(name: &'a str) -> Self {
        Self {
            name,
            start: Instant::now(),
        }
    }
}

impl Drop for Time<'_> {
    fn drop(&mut self) {
        let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
        times.push((self.start.elapsed(), self.name.to_owned()));
    }
}

/// Lists the longest cases, and what all took together; nothing when none ran.
pub fn show_longest() {
    let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    if times.is_empty() {
        return;
    }
    times.sort_unstable_by(|one, other| other.cmp(one));
    let all: Duration = times.iter().map(|(time, _)| time).sum();
    for (time, name) in times.iter().take(SHOWN) {
        println!("{:6.1} s  {name}", time.as_secs_f64());
    }
    println!("{:6.1} s  {} cases in all", all.as_secs_f64(), times.len());
}
