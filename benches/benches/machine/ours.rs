//! The machine as a pod.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use podvisor_tests::{Console, Cri, Handler, PodBuilder};

use super::{BOOT_LIMIT, IMAGE, MEMORY_MIB, USER_DATA};

/// Boots a new pod's machine; yields the time from the exec of its shim to the login prompt. What
/// containerd does between the pod and its container is in it.
pub fn boot(cri: &Cri) -> Result<Duration> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "bench")
        .memory_mib(MEMORY_MIB.into())
        .annotation("podvisor.io/boot", "machine")
        .annotation("podvisor.io/memory", &format!("{MEMORY_MIB}Mi"))
        .annotation("podvisor.io/cloud-init", USER_DATA);
    let pod = pod.run()?;
    let shim = pod.shim_pid()?;
    let container = pod.container("machine").image(IMAGE).command(&["boot"]);
    let container = container.stdin().terminal().start()?;
    let mut console = Console::attach(&container)?;
    let shown = console.expect_login(BOOT_LIMIT);
    let took = age(shim)?;
    shown.with_context(|| match container.log() {
        Ok(log) => log.stdout,
        Err(error) => format!("{error:#}"),
    })?;
    drop(console);
    container.stop(Duration::ZERO)?;
    pod.remove()?;
    Ok(took)
}

/// How long ago a process was started: exec keeps the time of its fork, a moment before.
fn age(pid: i32) -> Result<Duration> {
    /// Ticks of the times in /proc (proc(5)).
    const TICKS: f64 = 100.0;
    /// The place of the start's time among the fields behind the command's name.
    const START: usize = 19;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("a process without fields")?;
    let start: f64 = fields
        .split(' ')
        .nth(START)
        .context("a process without a start")?
        .parse()?;
    let uptime = fs::read_to_string("/proc/uptime")?;
    let uptime: f64 = uptime.split(' ').next().context("no uptime")?.parse()?;
    Ok(Duration::from_secs_f64(uptime - start / TICKS))
}
