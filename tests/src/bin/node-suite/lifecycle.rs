//! How containers end, what they use, and what their limits do.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::{Cri, Handler, PodBuilder, wait};

use crate::case::{Case, gate};

pub fn cases() -> Vec<Case> {
    vec![
        gate("a_container_is_asked_to_end_before_it_is_killed", stop),
        gate(
            "memory_beyond_the_limit_ends_one_container_only",
            out_of_memory,
        ),
        gate("statistics_are_right_for_a_known_load", statistics),
    ]
}

fn stop(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "stop").run()?;
    let polite = pod.container("polite");
    let polite =
        polite.script("trap 'echo asked; exit 5' TERM; echo up; while true; do sleep 0.1; done");
    let polite = polite.start()?;
    let deaf = pod
        .container("deaf")
        .script("trap '' TERM; echo up; while true; do sleep 1; done");
    let deaf = deaf.start()?;
    for container in [&polite, &deaf] {
        wait::until("trap", Duration::from_secs(20), || {
            Ok(container.log()?.stdout.contains("up").then_some(()))
        })?;
    }
    polite.stop(Duration::from_secs(60))?;
    ensure!(
        polite.status()?.exit_code == 5,
        "exit code {}",
        polite.status()?.exit_code
    );
    ensure!(
        polite.log()?.stdout == "up\nasked\n",
        "log {:?}",
        polite.log()?
    );

    let grace = Duration::from_secs(3);
    let start = Instant::now();
    deaf.stop(grace)?;
    ensure!(
        start.elapsed() >= grace,
        "killed after {:?}, grace was {grace:?}",
        start.elapsed()
    );
    ensure!(
        deaf.status()?.exit_code == 137,
        "exit code {}",
        deaf.status()?.exit_code
    );
    deaf.stop(grace).context("stop of a stopped container")?;
    deaf.remove()?;
    deaf.remove().context("second removal")?;
    pod.stop()?;
    pod.stop().context("second stop of the pod")
}

fn out_of_memory(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "oom")
        .memory_mib(128)
        .run()?;
    let neighbour = pod.container("neighbour").memory_mib(64).start()?;
    let greedy = pod.container("greedy").memory_mib(64);
    let greedy = greedy
        .script("x=1234567890123456; while true; do x=$x$x; done")
        .start()?;
    let status = greedy.wait(Duration::from_secs(120))?;
    ensure!(status.exit_code == 137, "exit code {}", status.exit_code);
    // Containerd learns of the OOM by an event, which may come after the exit.
    wait::until("OOMKilled", Duration::from_secs(10), || {
        Ok((greedy.status()?.reason == "OOMKilled").then_some(()))
    })?;
    ensure!(
        neighbour.shell("echo alive")? == "alive",
        "the neighbour died"
    );
    Ok(())
}

fn statistics(cri: &Cri) -> Result<()> {
    const HELD_MIB: u64 = 48;
    let pod = PodBuilder::new(cri, Handler::Podvisor, "stats")
        .memory_mib(192)
        .run()?;
    let load = pod.container("load").memory_mib(128).millicpus(500);
    // A quota of one half makes the load known: whatever the node does, it is used up.
    let script = format!(
        "head -c {HELD_MIB}m /dev/urandom > /dev/shm/held; touch /dev/shm/done; while true; do :; done"
    );
    let load = load.script(&script).start()?;
    wait::until("held memory", Duration::from_secs(120), || {
        Ok((load.exec(&["test", "-e", "/dev/shm/done"])?.code == 0).then_some(()))
    })?;
    let usage = || -> Result<(u64, i64, u64)> {
        let stats = load.stats()?;
        let cpu = stats.cpu.context("no CPU statistics")?;
        let memory = stats.memory.context("no memory statistics")?;
        let used = cpu.usage_core_nano_seconds.context("no CPU time")?.value;
        Ok((
            used,
            cpu.timestamp,
            memory.working_set_bytes.context("no working set")?.value,
        ))
    };
    let inside = || -> Result<u64> {
        let text = load.shell("awk '/usage_usec/ {print $2}' /sys/fs/cgroup/cpu.stat")?;
        Ok(text.parse::<u64>()? * 1000)
    };
    let inside_before = inside()?;
    let (first, first_at, held) = usage()?;
    std::thread::sleep(Duration::from_secs(10));
    let (second, second_at, _) = usage()?;
    let inside_after = inside()?;
    ensure!(second_at > first_at, "the statistics' time stands still");
    ensure!(
        inside_before <= first && first < second && second <= inside_after,
        "CPU time {first}..{second} ns, {inside_before}..{inside_after} ns inside"
    );
    let share = (second - first) as f64 / (second_at - first_at) as f64;
    ensure!(
        (0.45..=0.55).contains(&share),
        "a load of half a CPU is reported as {share:.3}"
    );
    let expected = HELD_MIB << 20;
    ensure!(
        (expected * 9 / 10..=expected * 11 / 10 + (4 << 20)).contains(&held),
        "working set {held} bytes with {expected} held"
    );
    Ok(())
}
