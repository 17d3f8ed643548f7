//! TCP through a pod's interface, from and to a VM beside a runc pod, in alternating pairs.
//!
//! Runs in a node: `net [PAIRS]`. The node's own `iperf3` is the other end, and the pods run the
//! same program from the node's folders: the path between them is all that differs. What a
//! gigabyte costs is the time of all the node's processors, both ends and the guest included.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_benches::{Median, print_figure};
use podvisor_tests::{Container, Cri, Handler, Pod, PodBuilder, wait};
use serde_json::Value;

/// Pairs that are measured unless told otherwise.
const PAIRS: usize = 15;
/// How long each transfer runs, in seconds. The first one is not counted: TCP grows its window.
const TRANSFER_S: &str = "3";
const WARM_UP_S: &str = "1";
/// Ticks in a second of `/proc/stat` (`USER_HZ`, the same on every x86 kernel).
const TICKS_PER_SECOND: f64 = 100.0;
/// Starts the node's `iperf3` with the node's own loader and libraries: the image has none.
const IPERF: &str = "exec /node/lib64/ld-linux-x86-64.so.2 \
    --library-path /node/lib/x86_64-linux-gnu /node/bin/iperf3";

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

fn main() -> Result<()> {
    let pairs = std::env::args()
        .filter_map(|word| word.parse().ok())
        .next()
        .unwrap_or(PAIRS);
    let cri = Cri::connect()?;
    let _server = Server::start()?;
    let (ours, runcs) = (
        PodBuilder::new(&cri, Handler::Podvisor, "net").run()?,
        PodBuilder::new(&cri, Handler::Runc, "net").run()?,
    );
    let (ours, runcs) = (End::start(&ours)?, End::start(&runcs)?);
    for (direction, prefix) in [(Direction::Out, "net"), (Direction::In, "net.in")] {
        let mut transfers = Vec::new();
        for pair in 0..pairs {
            eprintln!("{direction:?}, pair {} of {pairs}", pair + 1);
            // Whatever else the machine does changes slowly: take turns.
            transfers.push(if pair % 2 == 0 {
                let our = ours.transfer(direction)?;
                (our, runcs.transfer(direction)?)
            } else {
                let runc = runcs.transfer(direction)?;
                (ours.transfer(direction)?, runc)
            });
        }
        report(prefix, &transfers)?;
    }
    Ok(())
}

/// The other end, on the node.
struct Server(Child);

impl Server {
    fn start() -> Result<Self> {
        let child = Command::new("iperf3")
            .arg("--server")
            .stdout(Stdio::null())
            .spawn()
            .context("start iperf3")?;
        Ok(Self(child))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, which was told by a failing transfer then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A pod's end, with the address at which it finds the other one.
struct End<'p, 'c> {
    container: Container<'p, 'c>,
    node: String,
}

impl<'p, 'c> End<'p, 'c> {
    fn start(pod: &'p Pod<'c>) -> Result<Self> {
        let container = pod
            .container("idle")
            .mount_read_only(Path::new("/usr"), "/node")
            .start()?;
        let node = container.shell("ip route | awk '/^default/ {print $3}'")?;
        let end = Self { container, node };
        wait::until("an answer of iperf3", Duration::from_secs(60), || {
            let output = end.iperf(Direction::Out, "1")?;
            Ok((output.code == 0).then_some(()))
        })?;
        Ok(end)
    }

    fn iperf(&self, direction: Direction, seconds: &str) -> Result<podvisor_tests::ExecOutput> {
        let reverse = match direction {
            Direction::Out => "",
            Direction::In => "--reverse",
        };
        let script = format!(
            "{IPERF} --client {} --time {seconds} --omit {WARM_UP_S} --json {reverse}",
            self.node
        );
        self.container.exec(&["sh", "-c", &script])
    }

    fn transfer(&self, direction: Direction) -> Result<Transfer> {
        let before = busy_seconds()?;
        let output = self.iperf(direction, TRANSFER_S)?;
        let busy = busy_seconds()? - before;
        ensure!(
            output.code == 0,
            "iperf3: {}{}",
            output.stdout,
            output.stderr
        );
        let answer: Value = serde_json::from_str(&output.stdout).context("iperf3's answer")?;
        let number = |pointer: &str| {
            let value = answer.pointer(pointer).and_then(Value::as_f64);
            value.with_context(|| format!("iperf3 says nothing at {pointer}"))
        };
        let bits_per_second = number("/end/sum_received/bits_per_second")?;
        // The warm-up is in the time of the processors, but not in iperf3's sums.
        let seconds = number("/end/sum_received/seconds")? + WARM_UP_S.parse::<f64>()?;
        Ok(Transfer {
            bytes_per_second: bits_per_second / 8.0,
            cpu_seconds_per_gb: busy / (bits_per_second / 8e9 * seconds),
        })
    }
}

/// How long the node's processors were at work since its start, all together.
fn busy_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq; a guest's time is in user (proc_stat(5)).
    let [user, nice, system, _, _, irq, softirq, ..] = ticks.as_slice() else {
        anyhow::bail!("/proc/stat begins with {line:?}");
    };
    Ok((user + nice + system + irq + softirq) / TICKS_PER_SECOND)
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
