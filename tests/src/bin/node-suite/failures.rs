//! What happens when something dies: the shim, the guest, containerd.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podvisor_proto::cri::v1::PodSandboxState;
use podvisor_tests::{Cri, Handler, PodBuilder, node, wait};

use crate::case::{Case, gate};

pub fn cases() -> Vec<Case> {
    vec![
        gate("a_killed_shim_is_reported_and_leaves_nothing", killed_shim),
        gate(
            "a_guest_panic_ends_every_container_with_its_reason",
            guest_panic,
        ),
        gate("pods_outlive_a_restart_of_containerd", containerd_restart),
    ]
}

fn killed_shim(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "killed").run()?;
    let container = pod.container("idle").start()?;
    kill(Pid::from_raw(pod.shim_pid()?), Signal::SIGKILL)?;
    let status = container.wait(Duration::from_secs(30))?;
    ensure!(status.exit_code != 0, "exit code {}", status.exit_code);
    wait::until("pod not ready", Duration::from_secs(30), || {
        let status = pod.status()?.status.context("no status")?;
        Ok((status.state() == PodSandboxState::SandboxNotready).then_some(()))
    })
}

fn guest_panic(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "panic")
        .privileged()
        .run()?;
    let idle = pod.container("idle").start()?;
    let trigger = pod.container("trigger").privileged().memory_mib(32);
    // Value 2 makes the kernel panic on any OOM, that of one cgroup included.
    let trigger = trigger.script(
        "echo 2 > /proc/sys/vm/panic_on_oom; x=1234567890123456; while true; do x=$x$x; done",
    );
    let trigger = trigger.start()?;
    trigger.wait(Duration::from_secs(120))?;
    let ended = Instant::now();
    let status = idle.wait(Duration::from_secs(10))?;
    // An emulated CPU may take longer than the second that the neighbour is given.
    ensure!(
        ended.elapsed() < Duration::from_secs(3),
        "neighbour ended {:?} later",
        ended.elapsed()
    );
    ensure!(status.exit_code != 0, "exit code {}", status.exit_code);
    ensure!(
        idle.exec(&["true"]).is_err(),
        "a command ran in a dead guest"
    );
    let log = fs::read_to_string(node::CONTAINERD_LOG)?;
    ensure!(
        log.contains("panic_on_oom is enabled"),
        "the log lacks the guest's panic"
    );
    Ok(())
}

fn containerd_restart(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "restart").run()?;
    let ticking = pod.container("ticking");
    let ticking = ticking
        .script("i=0; while true; do i=$((i+1)); echo $i; sleep 0.2; done")
        .start()?;
    wait::until("first lines", Duration::from_secs(20), || {
        Ok((ticking.log()?.stdout.lines().count() > 3).then_some(()))
    })?;
    node::restart_containerd()?;
    wait::until("containerd", Duration::from_secs(120), || {
        Ok(ticking.status().ok())
    })?;
    ensure!(
        ticking.shell("echo again")? == "again",
        "exec after the restart"
    );
    let before = ticking.log()?.stdout.lines().count();
    wait::until("lines after the restart", Duration::from_secs(30), || {
        Ok((ticking.log()?.stdout.lines().count() > before).then_some(()))
    })?;
    let log = ticking.log()?.stdout;
    let numbers: Vec<u64> = log.lines().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(numbers.is_sorted(), "lines out of order: {numbers:?}");
    ticking.stop(Duration::from_secs(0))
}
