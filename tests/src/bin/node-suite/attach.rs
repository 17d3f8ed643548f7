//! Commands through CRI's streaming server, in a VM pod and in a runc pod.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::streaming::Wanted;
use podvisor_tests::streaming::channel::{STATUS, STDERR, STDIN, STDOUT};
use podvisor_tests::{Container, Cri, Handler, Pod, PodBuilder, Session, wait};

use crate::case::{Case, gate};

pub fn cases() -> Vec<Case> {
    vec![gate("commands_have_streams_codes_and_time_limits", |cri| {
        in_both(cri, commands)
    })]
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
