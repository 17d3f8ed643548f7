//! The command line on a node: `podvisor console` at a terminal and through pipes, and what
//! `podvisor run` keeps for the next run.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podvisor_tests::{Container, Cri, Handler, Pod, PodBuilder, wait};

use crate::case::{Case, gate};
use crate::terminal::{Screen, Terminal, end};

const ANSWER: Duration = Duration::from_secs(60);
/// Ctrl-].
pub const ESCAPE: &str = "\u{1d}";

pub fn cases() -> Vec<Case> {
    vec![
        gate("podvisor_console_is_a_terminal_or_pipes", console).shared(),
        gate("podvisor_run_keeps_claims", |_| claim()).shared(),
    ]
}

fn console(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "console").run()?;
    let echo = pod
        .container("echo")
        .stdin()
        .terminal()
        .script("echo ready; while read -r line; do echo \"<$line>\" in $(stty size); done");
    let echo = echo.start()?;
    wait::until("the first line", ANSWER, || {
        Ok(echo.log()?.stdout.contains("ready").then_some(()))
    })?;
    at_a_terminal(&pod)?;
    through_pipes(&pod, &echo)
}

/// A terminal whose Ctrl-C is the pod's.
fn at_a_terminal(pod: &Pod<'_>) -> Result<()> {
    let mut command = Command::new("podvisor");
    let mut console = Terminal::run(command.args(["console", &pod.id, "--tail", "1"]))?;
    for (typed, shown) in [
        ("", "ready"),
        ("", "Ctrl-] disconnects"),
        // A terminal that is not raw would show ^A instead of sending it.
        ("one\r", "<one> in 37 101"),
    ] {
        console.type_in(typed)?;
        console.wait_for(shown, ANSWER)?;
    }
    console.type_in(ESCAPE)?;
    let code = console.end()?;
    console.wait_for("disconnected", ANSWER)?;
    ensure!(code == Some(0), "the escape ends with {code:?}");
    Ok(())
}

/// Pipes carry on until a signal comes.
fn through_pipes(pod: &Pod<'_>, echo: &Container<'_, '_>) -> Result<()> {
    let mut console = Command::new("podvisor")
        .args(["console", &pod.id, "--container", "echo", "--log"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("podvisor console")?;
    let mut input = console.stdin.take().context("no stdin")?;
    let output = OwnedFd::from(console.stdout.take().context("no stdout")?);
    let mut output = Screen::new(output.into())?;
    output.wait_for("<one> in 37 101", ANSWER)?;
    input.write_all(b"two\n")?;
    drop(input);
    output.wait_for("<two>", ANSWER)?;
    ensure!(console.try_wait()?.is_none(), "the end of stdin ended it");
    kill(Pid::from_raw(i32::try_from(console.id())?), Signal::SIGTERM)?;
    let code = end(&mut console)?;
    ensure!(code == Some(143), "SIGTERM ends with {code:?}");
    ensure!(
        echo.log()?.stdout.contains("<two>"),
        "nothing of it in the log"
    );
    Ok(())
}

/// A block volume that a Job writes to, read by the next pod with the same claim.
fn claim() -> Result<()> {
    const FOLDER: &str = "/var/lib/podvisor/claims/suite";
    let job = |script: &str| {
        format!(
            "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: keeper, namespace: suite}}\nspec:\n  template:\n    \
             spec:\n      runtimeClassName: podvisor\n      restartPolicy: Never\n      containers:\n      - name: app\n        \
             image: docker.io/library/busybox:latest\n        command: [sh, -c, {script:?}]\n        \
             volumeDevices: [{{name: disk, devicePath: /dev/kept}}]\n      \
             volumes: [{{name: disk, persistentVolumeClaim: {{claimName: kept}}}}]\n\
             ---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: kept, namespace: suite}}\nspec:\n  \
             volumeMode: Block\n  resources: {{requests: {{storage: 16Mi}}}}\n"
        )
    };
    let write = "echo a word to keep | dd of=/dev/kept conv=sync,fsync";
    run(&job(write))?;
    let read = run(&job("head -n 1 /dev/kept"));
    ensure!(
        Path::new(FOLDER).join("kept/disk.img").is_file(),
        "no disk in {FOLDER}"
    );
    std::fs::remove_dir_all(FOLDER)?;
    let read = read?;
    ensure!(read == "a word to keep\n", "{read:?} is on the disk");
    Ok(())
}

/// Runs a manifest; yields what its pod wrote to stdout.
fn run(manifest: &str) -> Result<String> {
    let mut podvisor = Command::new("podvisor")
        .args(["run", "--rm", "--quiet", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("podvisor run")?;
    let mut input = podvisor.stdin.take().context("no stdin")?;
    input.write_all(manifest.as_bytes())?;
    drop(input);
    let output = podvisor.wait_with_output()?;
    if !output.status.success() {
        bail!("podvisor run ended with {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}
