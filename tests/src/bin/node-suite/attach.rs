//! Commands and attachments through CRI's streaming server, in a VM pod and in a runc pod.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::streaming::Wanted;
use podvisor_tests::streaming::channel::{STATUS, STDERR, STDIN, STDOUT};
use podvisor_tests::{Container, Cri, Handler, Pod, PodBuilder, Session, wait};

use crate::case::{Case, gate};

pub fn cases() -> Vec<Case> {
    vec![
        gate("attachments_come_and_go", |cri| in_both(cri, attach)),
        gate("commands_have_streams_codes_and_time_limits", |cri| {
            in_both(cri, commands)
        }),
    ]
}

const INPUT: Wanted = Wanted {
    stdin: true,
    terminal: false,
};
const TERMINAL: Wanted = Wanted {
    stdin: true,
    terminal: true,
};

/// Runs a test in a runc pod, which shows that it expects what is right, and in a VM pod.
fn in_both(cri: &Cri, test: fn(&Pod<'_>) -> Result<()>) -> Result<()> {
    for handler in [Handler::Runc, Handler::Podvisor] {
        let pod = PodBuilder::new(cri, handler, "streams").run()?;
        test(&pod).with_context(|| format!("in a {handler:?} pod"))?;
    }
    Ok(())
}

fn attach(pod: &Pod<'_>) -> Result<()> {
    let lines = pod
        .container("lines")
        .stdin()
        .script("while read line; do echo out $line; echo err $line >&2; done; echo end");
    let lines = lines.start()?;
    // Whoever is attached gets both streams; standard input outlives each of them.
    for line in ["one", "two"] {
        let mut session = lines.attach(INPUT)?;
        session.send(STDIN, format!("{line}\n").as_bytes())?;
        session.wait_for(STDOUT, &format!("out {line}\n"))?;
        session.wait_for(STDERR, &format!("err {line}\n"))?;
    }
    logged(&lines, "out one\nout two\n", "err one\nerr two\n")?;
    attach_once(pod)?;
    attach_to_terminal(pod)
}

/// With `stdinOnce`, standard input ends with the first attachment.
fn attach_once(pod: &Pod<'_>) -> Result<()> {
    let once = pod
        .container("once")
        .stdin_once()
        .script("cat; echo end; exit 6");
    let once = once.start()?;
    let mut session = once.attach(INPUT)?;
    session.send(STDIN, b"text\n")?;
    session.wait_for(STDOUT, "text\n")?;
    drop(session);
    let status = once.wait(Duration::from_secs(30))?;
    ensure!(status.exit_code == 6, "exit code {}", status.exit_code);
    logged(&once, "text\nend\n", "")
}

/// Waits until a container's log has these streams, and nothing else: containerd serves attachments and log apart.
fn logged(container: &Container<'_, '_>, stdout: &str, stderr: &str) -> Result<()> {
    wait::until(
        &format!("{stdout:?} and {stderr:?} in the log"),
        Duration::from_secs(20),
        || {
            let log = container.log()?;
            Ok((log.stdout == stdout && log.stderr == stderr).then_some(()))
        },
    )
}

fn attach_to_terminal(pod: &Pod<'_>) -> Result<()> {
    let shell = pod
        .container("shell")
        .stdin()
        .terminal()
        .script("test -t 2 && while read line; do stty size; done");
    let shell = shell.start()?;
    let mut session = shell.attach(TERMINAL)?;
    follows_its_size(&mut session)?;
    drop(session);
    wait::until("the size in the log", Duration::from_secs(20), || {
        Ok(shell.log()?.stdout.contains("37 121").then_some(()))
    })
}

/// Resizes a terminal whose program says its size for every line.
fn follows_its_size(session: &mut Session) -> Result<()> {
    session.resize(121, 37)?;
    // The size comes on another channel, which may be slower than the line.
    wait::until("the size", Duration::from_secs(30), || {
        session.send(STDIN, b"\n")?;
        session.wait_for(STDOUT, "\r\n")?;
        Ok(session.take().text(STDOUT).contains("37 121").then_some(()))
    })
}

fn commands(pod: &Pod<'_>) -> Result<()> {
    let container = pod.container("idle").start()?;
    let script = ["sh", "-c", "echo out; echo err >&2; exit 7"];
    let ended = container
        .exec_stream(&script, Wanted::default())?
        .finish()?;
    ensure!(
        ended.text(STDOUT) == "out\n" && ended.text(STDERR) == "err\n",
        "{ended:?}"
    );
    let status = ended.text(STATUS);
    ensure!(status.contains(r#""message":"7""#), "{status}");

    let mut cat = container.exec_stream(&["cat"], INPUT)?;
    cat.send(STDIN, b"hello\n")?;
    cat.wait_for(STDOUT, "hello\n")?;
    drop(cat);

    let script = [
        "sh",
        "-c",
        "while read line && test \"$line\" != end; do stty size; done",
    ];
    let mut terminal = container.exec_stream(&script, TERMINAL)?;
    follows_its_size(&mut terminal)?;
    terminal.send(STDIN, b"end\n")?;
    let status = terminal.finish()?.text(STATUS);
    ensure!(status.contains("Success"), "{status}");
    time_limit(&container)
}

/// A command that runs into its time limit is killed.
fn time_limit(container: &Container<'_, '_>) -> Result<()> {
    let start = Instant::now();
    let command = ["sh", "-c", "echo $$ > /limited; sleep 1000"];
    let error = container
        .exec_within(&command, Duration::from_secs(2))
        .err()
        .context("the command ended in time")?;
    ensure!(
        format!("{error:#}").contains("DeadlineExceeded"),
        "{error:#}"
    );
    let took = start.elapsed();
    ensure!(took < Duration::from_secs(30), "ended after {took:?}");
    container.shell("test -s /limited && ! kill -0 $(cat /limited)")?;
    Ok(())
}
