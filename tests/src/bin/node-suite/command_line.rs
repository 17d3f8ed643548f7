//! The command line on a node: `podvisor console` at a terminal and through pipes, and what
//! `podvisor run` keeps for the next run.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podvisor_tests::{Container, Cri, Handler, Pod, PodBuilder, wait};

use crate::case::{Case, gate};

const ANSWER: Duration = Duration::from_secs(60);
/// Ctrl-].
const ESCAPE: &[u8] = b"\x1d";

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

/// A terminal of 101 columns and 37 rows, whose Ctrl-C is the pod's.
fn at_a_terminal(pod: &Pod<'_>) -> Result<()> {
    let size = Winsize {
        ws_row: 37,
        ws_col: 101,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let terminal = openpty(Some(&size), None)?;
    let mut person = File::from(terminal.master);
    fcntl(person.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let stdio = || terminal.slave.try_clone().map(Stdio::from);
    let mut command = Command::new("podvisor");
    command.args(["console", &pod.id, "--tail", "1"]);
    let mut console = command
        .stdin(stdio()?)
        .stdout(stdio()?)
        .stderr(stdio()?)
        .spawn()
        .context("podvisor console")?;
    let mut seen = Vec::new();
    for (typed, shown) in [
        (&b""[..], "ready"),
        (b"", "Ctrl-] disconnects"),
        // A terminal that is not raw would show ^A instead of sending it.
        (b"one\r", "<one> in 37 101"),
    ] {
        person.write_all(typed)?;
        wait_for(&mut person, &mut seen, shown)?;
    }
    person.write_all(ESCAPE)?;
    let code = end(&mut console)?;
    wait_for(&mut person, &mut seen, "disconnected")?;
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
    let mut output = File::from(std::os::fd::OwnedFd::from(
        console.stdout.take().context("no stdout")?,
    ));
    fcntl(output.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut seen = Vec::new();
    wait_for(&mut output, &mut seen, "<one> in 37 101")?;
    input.write_all(b"two\n")?;
    drop(input);
    wait_for(&mut output, &mut seen, "<two>")?;
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

/// Reads until `text` has come.
fn wait_for(from: &mut File, seen: &mut Vec<u8>, text: &str) -> Result<()> {
    let found = wait::until(text, ANSWER, || {
        let mut buffer = [0; 4096];
        // Nothing there, or nobody at the other end: what was seen decides.
        if let Ok(len) = from.read(&mut buffer) {
            seen.extend_from_slice(buffer.get(..len).unwrap_or_default());
        }
        Ok(String::from_utf8_lossy(seen).contains(text).then_some(()))
    });
    found.with_context(|| format!("seen: {:?}", String::from_utf8_lossy(seen)))
}

fn end(child: &mut Child) -> Result<Option<i32>> {
    let status = wait::until("the console's end", ANSWER, || Ok(child.try_wait()?));
    if status.is_err() {
        child.kill()?;
    }
    Ok(status?.code())
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
