//! TCP through a pod's interface, from and to a VM beside a runc pod, in alternating pairs.
//!
//! Runs in a node: `net [PAIRS] [--mib MIB]`. One end is in a pod (`transfer`), the other is this
//! program: the path between them is all that differs. What a gigabyte costs is the time of all the
//! node's processors, both ends and the guest included.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use podvisor_benches::{Median, print_figure, receive, send};
use podvisor_tests::{Container, Cri, Handler, Pod, PodBuilder};

/// Pairs that are measured unless told otherwise.
const PAIRS: usize = 15;
/// How much each transfer moves, unless told otherwise.
const TRANSFER_MIB: u64 = 128;
/// What opens windows and warms caches before.
const WARM_UP_BYTES: u64 = 8 << 20;
/// Ticks in a second of `/proc/stat` (`USER_HZ`, the same on every x86 kernel).
const TICKS_PER_SECOND: f64 = 100.0;
/// The other end's program, and where a pod has it.
const PROGRAM: &str = env!("CARGO_BIN_EXE_transfer");
const PROGRAM_IN_POD: &str = "/transfer";
/// Set where a clock counts instructions, which idle time is no part of.
const INSTRUCTIONS_VARIABLE: &str = "PODVISOR_CLOCK_INSTRUCTIONS";

/// Which way bytes flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    /// From the pod to the node.
    Out,
    /// From the node to the pod.
    In,
}

/// What one transfer came to.
#[derive(Clone, Copy)]
struct Transfer {
    bytes_per_second: f64,
    cpu_seconds_per_gb: f64,
}

/// What is to be measured.
#[derive(Clone, Copy)]
struct Plan {
    pairs: usize,
    bytes: u64,
}

fn main() -> Result<()> {
    let plan = Plan::of_arguments(std::env::args());
    let cri = Cri::connect()?;
    let (ours, runcs) = (
        PodBuilder::new(&cri, Handler::Podvisor, "net").run()?,
        PodBuilder::new(&cri, Handler::Runc, "net").run()?,
    );
    let (ours, runcs) = (End::start(&ours)?, End::start(&runcs)?);
    for (direction, prefix) in [(Direction::Out, "net"), (Direction::In, "net.in")] {
        for end in [&ours, &runcs] {
            end.transfer(direction, WARM_UP_BYTES)?;
        }
        let mut transfers = Vec::new();
        for pair in 0..plan.pairs {
            eprintln!("{direction:?}, pair {} of {}", pair + 1, plan.pairs);
            // Whatever else the machine does changes slowly: take turns.
            transfers.push(if pair % 2 == 0 {
                let our = ours.transfer(direction, plan.bytes)?;
                (our, runcs.transfer(direction, plan.bytes)?)
            } else {
                let runc = runcs.transfer(direction, plan.bytes)?;
                (ours.transfer(direction, plan.bytes)?, runc)
            });
        }
        report(prefix, &transfers)?;
    }
    Ok(())
}

impl Plan {
    fn of_arguments(words: impl Iterator<Item = String>) -> Self {
        let mut plan = Self {
            pairs: PAIRS,
            bytes: TRANSFER_MIB << 20,
        };
        let mut words = words;
        while let Some(word) = words.next() {
            if word == "--mib" {
                let mib = words.next().and_then(|mib| mib.parse().ok());
                plan.bytes = mib.unwrap_or(TRANSFER_MIB) << 20;
            } else if let Ok(pairs) = word.parse() {
                plan.pairs = pairs;
            }
        }
        plan
    }
}

/// A pod's end, and where it finds this one.
struct End<'p, 'c> {
    container: Container<'p, 'c>,
    listener: TcpListener,
    address: String,
}

impl<'p, 'c> End<'p, 'c> {
    fn start(pod: &'p Pod<'c>) -> Result<Self> {
        let container = pod
            .container("idle")
            .mount_read_only(Path::new(PROGRAM), PROGRAM_IN_POD)
            .start()?;
        let node = container.shell("ip route | awk '/^default/ {print $3}'")?;
        let listener = TcpListener::bind("0.0.0.0:0")?;
        let port = listener.local_addr()?.port();
        Ok(Self {
            container,
            listener,
            address: format!("{node}:{port}"),
        })
    }

    fn transfer(&self, direction: Direction, bytes: u64) -> Result<Transfer> {
        let word = match direction {
            Direction::Out => "out",
            Direction::In => "in",
        };
        let count = bytes.to_string();
        let command = [PROGRAM_IN_POD, &self.address, word, &count];
        let (moved, output) = thread::scope(|scope| {
            // The program's start is not measured: its connection comes after it.
            let here = scope.spawn(|| move_bytes(&self.listener, direction, bytes));
            let output = self.container.exec(&command);
            let moved = here.join().map_err(|_| anyhow!("the node's end panicked"));
            (moved, output)
        });
        let output = output?;
        ensure!(output.code == 0, "the pod's end: {output:?}");
        moved?
    }
}

/// Accepts one connection and moves bytes through it.
fn move_bytes(listener: &TcpListener, direction: Direction, bytes: u64) -> Result<Transfer> {
    let (mut stream, _) = listener.accept()?;
    let (began, times) = (Instant::now(), Times::read()?);
    match direction {
        Direction::Out => receive(&mut stream, bytes)?,
        Direction::In => send(&mut stream, bytes)?,
    }
    let (elapsed, spent) = (began.elapsed().as_secs_f64(), Times::read()?.since(times));
    let seconds = match std::env::var_os(INSTRUCTIONS_VARIABLE) {
        Some(_) => elapsed - spent.idle,
        None => elapsed,
    };
    let gb = bytes as f64 / 1e9;
    Ok(Transfer {
        bytes_per_second: bytes as f64 / seconds,
        cpu_seconds_per_gb: spent.busy / gb,
    })
}

/// What the node's processors did since its start, all together, in seconds.
#[derive(Clone, Copy)]
struct Times {
    busy: f64,
    idle: f64,
}

impl Times {
    fn read() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().unwrap_or_default();
        let ticks: Vec<f64> = line
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        // A guest's time is in user (proc_stat(5)).
        let [user, nice, system, idle, iowait, irq, softirq, ..] = ticks.as_slice() else {
            anyhow::bail!("/proc/stat begins with {line:?}");
        };
        Ok(Self {
            busy: (user + nice + system + irq + softirq) / TICKS_PER_SECOND,
            idle: (idle + iowait) / TICKS_PER_SECOND,
        })
    }

    fn since(self, before: Self) -> Self {
        Self {
            busy: self.busy - before.busy,
            idle: self.idle - before.idle,
        }
    }
}

fn report(prefix: &str, transfers: &[(Transfer, Transfer)]) -> Result<()> {
    let median = |of: &dyn Fn(&(Transfer, Transfer)) -> f64| {
        let values: Vec<f64> = transfers.iter().map(of).collect();
        Median::of(&values).context("too few pairs for an interval")
    };
    let figure = |name: &str, value: f64, unit: &str| {
        print_figure(&format!("{prefix}.{name}"), value, unit);
    };
    let mb = |transfer: &Transfer| transfer.bytes_per_second / 1e6;
    figure("tcp", median(&|pair| mb(&pair.0))?.value, "MB/s");
    figure("tcp_runc", median(&|pair| mb(&pair.1))?.value, "MB/s");
    let cpu = |transfer: &Transfer| transfer.cpu_seconds_per_gb;
    figure("cpu_per_gb", median(&|pair| cpu(&pair.0))?.value, "s");
    figure("cpu_per_gb_runc", median(&|pair| cpu(&pair.1))?.value, "s");
    let ratio = median(&|pair| mb(&pair.0) / mb(&pair.1))?;
    figure("tcp_ratio", ratio.value, "ratio");
    figure("tcp_ratio_low", ratio.low, "ratio");
    figure("tcp_ratio_high", ratio.high, "ratio");
    Ok(())
}
