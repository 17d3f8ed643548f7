//! A pod's life in a VM beside the same life with runc, on one containerd, in alternating pairs.
//!
//! Runs in a node: `pod [PAIRS]`. Time is the node's clock; only ratios carry over to other
//! machines.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use podvisor_benches::{Median, print_figure};
use podvisor_tests::{Cri, Handler, PodBuilder};

/// Pairs that are measured unless told otherwise.
const PAIRS: usize = 15;
/// No pair begins after this time: on a busy machine there are fewer, and the intervals are wider.
const LIMIT: Duration = Duration::from_mins(10);

/// How long each step of one pod's life took.
struct Life {
    run: Duration,
    create: Duration,
    start: Duration,
    exec: Duration,
    stop: Duration,
    remove: Duration,
    /// From the shim's timeline, in microseconds since its exec; a runc pod has none.
    timeline: Vec<(String, f64)>,
}

/// A figure's name and what it measures of a life.
type Step = (&'static str, fn(&Life) -> Duration);

const STEPS: [Step; 7] = [
    ("run", |life| life.run),
    ("create", |life| life.create),
    ("start_container", |life| life.start),
    ("start", |life| life.run + life.create + life.start),
    ("exec", |life| life.exec),
    ("stop", |life| life.stop),
    ("remove", |life| life.remove),
];

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, step) in STEPS {
            write!(f, "{name} {:.2} s ", step(self).as_secs_f64())?;
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let pairs = std::env::args()
        .filter_map(|word| word.parse().ok())
        .next()
        .unwrap_or(PAIRS);
    let cri = Cri::connect()?;
    for handler in [Handler::Podvisor, Handler::Runc] {
        live(&cri, handler).with_context(|| format!("warm-up with {handler:?}"))?;
    }
    let begun = Instant::now();
    let mut lives = Vec::new();
    for pair in 0..pairs {
        if begun.elapsed() > LIMIT {
            break;
        }
        // Whoever comes second finds warmer caches: take turns.
        let (ours, runcs) = if pair % 2 == 0 {
            let ours = live(&cri, Handler::Podvisor)?;
            (ours, live(&cri, Handler::Runc)?)
        } else {
            let runcs = live(&cri, Handler::Runc)?;
            (live(&cri, Handler::Podvisor)?, runcs)
        };
        eprintln!("pair {} of {pairs}: {ours} beside {runcs}", pair + 1);
        lives.push((ours, runcs));
    }
    report(&lives)
}

fn live(cri: &Cri, handler: Handler) -> Result<Life> {
    let (run, pod) = timed(|| PodBuilder::new(cri, handler, "bench").run())?;
    let (create, container) = timed(|| pod.container("idle").create())?;
    let (start, ()) = timed(|| container.start())?;
    let (exec, _) = timed(|| container.exec(&["true"]))?;
    let timeline = match handler {
        Handler::Podvisor => read_timeline(&pod.bundle().join("timeline.json"))?,
        _ => Vec::new(),
    };
    let (stop, ()) = timed(|| pod.stop())?;
    let (remove, ()) = timed(|| pod.remove())?;
    Ok(Life {
        run,
        create,
        start,
        exec,
        stop,
        remove,
        timeline,
    })
}

fn timed<T>(action: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let start = Instant::now();
    let value = action()?;
    Ok((start.elapsed(), value))
}

fn read_timeline(path: &std::path::Path) -> Result<Vec<(String, f64)>> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let phases: serde_json::Value = serde_json::from_slice(&text)?;
    let phases = phases.as_array().context("timeline.json is no list")?;
    let phase = |entry: &serde_json::Value| {
        Some((
            entry.get("phase")?.as_str()?.to_owned(),
            entry.get("us")?.as_f64()?,
        ))
    };
    phases
        .iter()
        .map(|entry| phase(entry).context("a phase lacks its name or time"))
        .collect()
}

fn report(lives: &[(Life, Life)]) -> Result<()> {
    for (name, step) in STEPS {
        let milliseconds = |of: fn(&(Life, Life)) -> &Life| -> Vec<f64> {
            lives
                .iter()
                .map(|pair| step(of(pair)).as_secs_f64() * 1e3)
                .collect()
        };
        let (ours, runcs) = (milliseconds(|pair| &pair.0), milliseconds(|pair| &pair.1));
        let ratios: Vec<f64> = ours.iter().zip(&runcs).map(|(a, b)| a / b).collect();
        let few = "too few pairs for an interval";
        print_figure(
            &format!("pod.{name}"),
            Median::of(&ours).context(few)?.value,
            "ms",
        );
        print_figure(
            &format!("pod.{name}_runc"),
            Median::of(&runcs).context(few)?.value,
            "ms",
        );
        let ratio = Median::of(&ratios).context(few)?;
        print_figure(&format!("pod.{name}_ratio"), ratio.value, "ratio");
        print_figure(&format!("pod.{name}_ratio_low"), ratio.low, "ratio");
        print_figure(&format!("pod.{name}_ratio_high"), ratio.high, "ratio");
    }
    print_figure("pod.pairs", lives.len() as f64, "pairs");
    report_phases(lives)?;
    let timelines: Vec<_> = lives.iter().map(|(ours, _)| &ours.timeline).collect();
    for (figure, phase) in [
        ("pod.create_to_ready", "agent ready"),
        ("pod.create_to_start", "started"),
    ] {
        let times = timelines.iter().map(|timeline| {
            let entry = timeline.iter().find(|(name, _)| name == phase);
            entry
                .map(|(_, us)| us / 1e3)
                .with_context(|| format!("no phase {phase:?}"))
        });
        let times: Vec<f64> = times.collect::<Result<_>>()?;
        let median = Median::of(&times).context("too few pairs for an interval")?;
        print_figure(figure, median.value, "ms");
    }
    Ok(())
}

/// Prints where the time of a start goes, by the shim's own timeline.
fn report_phases(lives: &[(Life, Life)]) -> Result<()> {
    let (first, _) = lives.first().context("no pairs")?;
    for (phase, _) in &first.timeline {
        let times: Vec<f64> = lives
            .iter()
            .filter_map(|(ours, _)| ours.timeline.iter().find(|(name, _)| name == phase))
            .map(|(_, us)| us / 1e3)
            .collect();
        if let Some(median) = Median::of(&times) {
            print_figure(
                &format!("pod.phase.{}", phase.replace(' ', "_")),
                median.value,
                "ms",
            );
        }
    }
    Ok(())
}
