//! How containers end, and what ends them.

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
