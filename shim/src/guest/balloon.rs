//! Asks a guest for memory while the pod's cgroup is short of it, and gives it back afterwards.

use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use podvisor_devices::virtio::BalloonControl;
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval};

/// Where version 2 of cgroups is mounted.
const CGROUPS: &str = "/sys/fs/cgroup";
/// How often the pressure is looked at. The kernel's figure is of the last ten seconds.
const INTERVAL: Duration = Duration::from_secs(5);
/// Percent of time in which somebody of the pod waited for memory, beyond which there is pressure.
const HIGH: f32 = 10.0;
/// And below which there is none any more.
const LOW: f32 = 1.0;
/// A guest keeps this part of its memory, whatever the pressure.
const KEPT: u64 = 2;
/// What is asked for or given back at once, as a part of the guest's memory.
const STEP: u64 = 16;
/// Looks after which a guest that took memory back, lest it kill a process, is asked for some again.
const REST: u32 = 24;

/// The pressure of a cgroup (`memory.pressure`): percent of the last ten seconds in which some
/// task waited for memory. `None` when the text is none of the kernel's.
#[must_use]
pub fn pressure(text: &str) -> Option<f32> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let mut words = line.split_ascii_whitespace();
    let value = words.find_map(|word| word.strip_prefix("avg10="))?;
    value
        .parse()
        .ok()
        .filter(|value| (0.0..=100.0).contains(value))
}

/// What the balloon is to hold, from one look to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonPolicy {
    memory: u64,
    target: u64,
    rest: u32,
}

impl BalloonPolicy {
    /// Of a guest with `memory` bytes.
    #[must_use]
    pub fn new(memory: u64) -> Self {
        Self {
            memory,
            target: 0,
            rest: 0,
        }
    }

    /// The target in bytes after a look at the pressure and at what the balloon holds, in bytes.
    pub fn look(&mut self, pressure: f32, held: u64) -> u64 {
        let step = self.memory / STEP;
        self.rest = self.rest.saturating_sub(1);
        if held + step < self.target {
            // The guest is at its end: it has taken memory back, or does not find any to give.
            self.target = held;
            self.rest = REST;
        } else if pressure >= HIGH && self.rest == 0 {
            self.target = (self.target + step).min(self.memory / KEPT);
        } else if pressure < LOW {
            self.target = self.target.saturating_sub(step);
        }
        self.target
    }
}

/// Moves the balloon of a machine until it is dropped.
pub struct Follower(AbortHandle);

impl Follower {
    /// Follows the pressure of this process's cgroup, which pays for the guest's memory, with the
    /// balloon of a guest with `memory` bytes.
    #[must_use]
    pub fn spawn(control: BalloonControl, memory: u64) -> Self {
        Self(tokio::spawn(follow(control, memory)).abort_handle())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A host without such a file has nothing to follow, which is no error.
async fn follow(control: BalloonControl, memory: u64) {
    let mut policy = BalloonPolicy::new(memory);
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = 0;
    loop {
        ticks.tick().await;
        let Ok(text) = own_pressure() else {
            tracing::info!("there is no memory pressure to follow");
            return;
        };
        let Some(pressure) = pressure(&text) else {
            continue;
        };
        let target = policy.look(pressure, control.held());
        if target != last {
            tracing::debug!(pressure, target, "another target for the balloon");
            control.set_target_bytes(target);
            last = target;
        }
    }
}

/// The kernel's text on this process's cgroup (version 2).
fn own_pressure() -> io::Result<String> {
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let group = group.ok_or(io::ErrorKind::NotFound)?;
    fs::read_to_string(Path::new(CGROUPS).join(group).join("memory.pressure"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_kernels_text_is_read_and_no_other() {
        let text = "some avg10=12.34 avg60=1.00 avg300=0.00 total=5\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(pressure(text), Some(12.34));
        for wrong in [
            "",
            "full avg10=1.0",
            "some avg60=1.0",
            "some avg10=x",
            "some avg10=NaN",
        ] {
            assert_eq!(pressure(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn pressure_takes_memory_step_by_step_up_to_half_and_its_end_gives_it_back() {
        let mut policy = BalloonPolicy::new(16 * GIB);
        let mut held = 0;
        for expected in [1, 2, 3, 4, 5, 6, 7, 8, 8, 8] {
            held = policy.look(50.0, held);
            assert_eq!(held, expected * GIB);
        }
        assert_eq!(policy.look(5.0, held), 8 * GIB, "in between it stays");
        for expected in [7, 6, 5, 4, 3, 2, 1, 0, 0] {
            held = policy.look(0.0, held);
            assert_eq!(held, expected * GIB);
        }
    }

    #[test]
    fn a_guest_that_took_memory_back_is_left_alone_for_a_while() {
        let mut policy = BalloonPolicy::new(16 * GIB);
        let mut held = 0;
        for _ in 0..4 {
            held = policy.look(50.0, held);
        }
        assert_eq!(held, 4 * GIB);
        assert_eq!(policy.look(50.0, GIB), GIB, "it has deflated the balloon");
        let asked = (0..2 * REST).position(|_| policy.look(50.0, GIB) > GIB);
        assert_eq!(asked, Some(usize::try_from(REST).unwrap() - 1));
    }

    proptest! {
        #[test]
        fn a_guest_keeps_half_of_its_memory(looks in prop::collection::vec((0_f32..100.0, 0_u64..20), 0..100)) {
            let mut policy = BalloonPolicy::new(16 * GIB);
            for (pressure, held) in looks {
                let target = policy.look(pressure, held * GIB);
                prop_assert!(target <= 8 * GIB || target == held * GIB);
            }
        }
    }
}
