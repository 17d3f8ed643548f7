//! How machines end that do not do so by themselves, and what is told of it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use podvisor_tests::Cri;

use super::{BUSYBOX, BUSYBOX_BOOT, logged_in, machine, machine_pod};
use crate::case::{Case, gate, long};

/// A crash domain ends within a second; the node is emulated.
const SOON: Duration = Duration::from_secs(60);

pub fn cases() -> Vec<Case> {
    vec![
        long("a_machines_panic_ends_it_with_a_reason", panic),
        gate("a_machine_without_an_answer_is_switched_off", deaf),
        long("power_actions_are_as_annotated", actions),
    ]
}

fn panic(cri: &Cri) -> Result<()> {
    let pod = machine_pod(cri, "panic").run()?;
    let machine = machine(&pod, BUSYBOX).start()?;
    let mut console = logged_in(&machine)?;
    console.send("echo c > /proc/sysrq-trigger\n")?;
    let status = machine.wait(SOON)?;
    ensure!(status.exit_code != 0, "{status:?}");
    let log = machine.log()?.stdout;
    ensure!(
        log.contains("sysrq: Trigger a crash"),
        "the console's last lines are missing: {log}"
    );
    let last = log.trim_end().lines().last().unwrap_or_default();
    ensure!(
        last.starts_with("podvisor: ") && last.contains("panic"),
        "the reason: {last:?}"
    );
    Ok(())
}

/// A machine that does not hear its power button has its grace period, and no more.
fn deaf(cri: &Cri) -> Result<()> {
    const GRACE: Duration = Duration::from_secs(5);
    let pod = machine_pod(cri, "deaf").run()?;
    let machine = machine(&pod, BUSYBOX).start()?;
    let mut console = logged_in(&machine)?;
    console.run("killall acpid")?;
    machine.stop(GRACE)?;
    let status = machine.status()?;
    ensure!(status.exit_code == 137, "{status:?}");
    Ok(())
}

/// `on-reboot: stop` and `on-poweroff: restart`, and a stop of such a machine.
fn actions(cri: &Cri) -> Result<()> {
    let pod = machine_pod(cri, "actions")
        .annotation("podvisor.io/on-reboot", "stop")
        .annotation("podvisor.io/on-poweroff", "restart");
    let pod = pod.run()?;
    let machine = machine(&pod, BUSYBOX).start()?;
    let mut console = logged_in(&machine)?;
    console.send("poweroff\n")?;
    console.expect(": boot 2\n", BUSYBOX_BOOT)?;
    drop(console);
    let mut console = logged_in(&machine)?;
    console.send("reboot\n")?;
    let status = machine.wait(SOON)?;
    ensure!(status.exit_code == 0, "{status:?}");
    machine.remove()?;
    // Who stops it wants it off: it does not start over until it is killed.
    let again = super::machine(&pod, BUSYBOX).attempt(1).start()?;
    logged_in(&again)?;
    let begin = Instant::now();
    again.stop(SOON)?;
    let took = begin.elapsed();
    let status = again.status()?;
    ensure!(
        status.exit_code == 0 && took < SOON,
        "after {took:?}: {status:?}"
    );
    // The log has the attempt before in it, too.
    let log = again.log()?.stdout;
    let last = log.rfind(": boot ").and_then(|at| log.get(at..));
    ensure!(
        last.is_some_and(
            |last| last.starts_with(": boot 1\n") && last.contains(": end of boot 1\n")
        ),
        "{log}"
    );
    Ok(())
}
