//! When the steps of a pod's start were done, since the exec of its server.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use podvisor_vmm::Phase;
use serde::Serialize;

/// The file in the sandbox's bundle.
const FILE: &str = "timeline.json";

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What was done.
    pub phase: String,
    /// When it was done, in microseconds since the server's exec.
    pub us: u64,
}

/// The steps of one pod; clones note into the same list.
#[derive(Clone, Debug)]
pub struct Timeline {
    steps: Arc<Mutex<Vec<Step>>>,
    begin: Instant,
    /// When the machine's own timeline began.
    before_machine: Arc<Mutex<Option<Duration>>>,
    over: Arc<AtomicBool>,
}

impl Timeline {
    /// A timeline that began `ago`.
    pub fn begun(ago: Duration) -> Self {
        let now = Instant::now();
        let begin = now.checked_sub(ago).unwrap_or(now);
        Self {
            steps: Arc::default(),
            begin,
            before_machine: Arc::default(),
            over: Arc::default(),
        }
    }

    /// A timeline that began with the exec of this process.
    pub fn since_exec() -> Self {
        Self::begun(age_of_process().unwrap_or_default())
    }

    /// Notes that `phase` is done, unless the start is over.
    pub fn done(&self, phase: &str) {
        if self.over.load(Ordering::Relaxed) {
            return;
        }
        let us = micros(self.begin.elapsed());
        if phase == "taps" {
            *lock(&self.before_machine) = Some(self.begin.elapsed());
        }
        lock(&self.steps).push(Step {
            phase: phase.to_owned(),
            us,
        });
    }

    /// The start is over: what comes now is the pod's life.
    pub fn finish(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Whether the start is over.
    pub fn is_finished(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Adds the steps of the machine, which began after the taps were there.
    pub fn machine(&self, phases: &[Phase]) {
        let offset = micros(lock(&self.before_machine).unwrap_or_default());
        let mut steps = lock(&self.steps);
        steps.extend(phases.iter().map(|phase| Step {
            phase: format!("vm.{}", phase.name),
            us: offset.saturating_add(phase.at_us),
        }));
        steps.sort_by_key(|step| step.us);
    }

    /// The steps in the order of their time.
    pub fn steps(&self) -> Vec<Step> {
        lock(&self.steps).clone()
    }

    /// Writes the steps into `bundle` and as one line into the log.
    pub fn publish(&self, bundle: &Path) {
        let steps = self.steps();
        let line: Vec<String> = steps
            .iter()
            .map(|step| format!("{}={}", step.phase, step.us))
            .collect();
        tracing::info!(us = line.join(" "), "timeline");
        let written = serde_json::to_vec(&steps).map_err(std::io::Error::from);
        if let Err(error) = written.and_then(|json| std::fs::write(bundle.join(FILE), json)) {
            tracing::warn!(%error, "cannot write {FILE}");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// How long ago this process was started, to a hundredth of a second (proc_pid_stat(5), field 22).
fn age_of_process() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks: u64 = fields.split(' ').nth(19)?.parse().ok()?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    let started = Duration::from_secs(1).checked_mul(u32::try_from(ticks).ok()?)?
        / u32::try_from(per_second).ok()?;
    let uptime = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).ok()?;
    Duration::from(uptime).checked_sub(started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_in_the_order_of_their_time() {
        let timeline = Timeline::begun(Duration::from_millis(5));
        timeline.done("taps");
        timeline.done("vm started");
        timeline.machine(&[Phase {
            name: "entry",
            at_us: 0,
        }]);
        let steps = timeline.steps();
        assert!(steps.is_sorted_by_key(|step| step.us));
        assert!(
            steps
                .iter()
                .any(|step| step.phase == "vm.entry" && step.us >= 5000)
        );
    }

    #[test]
    fn what_comes_after_the_start_is_not_noted() {
        let timeline = Timeline::since_exec();
        timeline.done("started");
        timeline.finish();
        timeline.done("another container");
        assert_eq!(timeline.steps().len(), 1);
        assert!(timeline.is_finished());
    }

    #[test]
    fn the_file_is_a_list_of_phases_and_microseconds() {
        let folder = tempfile::tempdir().unwrap();
        let timeline = Timeline::since_exec();
        timeline.done("ready");
        timeline.publish(folder.path());
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.path().join(FILE)).unwrap()).unwrap();
        assert_eq!(json[0]["phase"], "ready");
        assert!(json[0]["us"].is_u64());
    }
}
