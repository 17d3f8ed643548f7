//! Standard streams and terminals.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::streaming::Wanted;
use podvisor_tests::streaming::channel::STDIN;
use podvisor_tests::task::{Exec, Shim};
use podvisor_tests::{Cri, Handler, PodBuilder, wait};

use crate::case::{Case, gate};

pub fn cases() -> Vec<Case> {
    vec![
        gate("large_output_arrives_whole_and_apart", large_output),
        gate("input_reaches_containers_and_executions", input),
        gate("a_terminal_has_its_size_and_follows_changes", terminal),
    ]
}

fn large_output(cri: &Cri) -> Result<()> {
    const EACH: usize = 50 << 20;
    let pod = PodBuilder::new(cri, Handler::Podvisor, "output").run()?;
    let container = pod.container("idle").start()?;
    let shim = Shim::connect(&pod)?;
    let script = format!("yes 01234567 | head -c {EACH} & yes abcdefgh | head -c {EACH} >&2; wait");
    let exec = Exec {
        container: &container.id,
        id: "large",
        terminal: false,
        script: &script,
    };
    let (code, stdout, stderr) = shim.exec(&pod.volume("io")?, exec)?.finish()?;
    ensure!(code == 0, "exit code {code}");
    for (stream, line) in [(stdout, b"01234567\n"), (stderr, b"abcdefgh\n")] {
        ensure!(
            stream.len() == EACH,
            "{} bytes of {EACH} arrived",
            stream.len()
        );
        let whole = stream
            .chunks(line.len())
            .all(|chunk| line.starts_with(chunk));
        ensure!(
            whole,
            "bytes of {:?} are mixed up",
            line.escape_ascii().to_string()
        );
    }
    Ok(())
}

fn input(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "input").run()?;
    let container = pod
        .container("reader")
        .stdin()
        .script("read line; echo got $line; sleep 1000");
    let container = container.start()?;
    let shim = Shim::connect(&pod)?;
    let fifo = shim.state(&container.id)?.stdin;
    let mut stdin = OpenOptions::new()
        .write(true)
        .open(&fifo)
        .with_context(|| fifo.clone())?;
    stdin.write_all(b"a line\n")?;
    wait::until("the line", Duration::from_secs(20), || {
        Ok((container.log()?.stdout == "got a line\n").then_some(()))
    })?;

    let exec = Exec {
        container: &container.id,
        id: "cat",
        terminal: false,
        script: "wc -c; echo end",
    };
    let execution = shim.exec(&pod.volume("io")?, exec)?;
    let mut stdin = execution.stdin()?;
    stdin.write_all(&vec![b'x'; 3 << 20])?;
    drop(stdin);
    execution.close_stdin()?;
    let (code, stdout, _) = execution.finish()?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    ensure!(
        code == 0 && stdout == format!("{}\nend\n", 3 << 20),
        "{code}: {stdout:?}"
    );

    // The shell leaves its output as soon as it has started; what comes in later arrives all the same.
    let wanted = Wanted {
        stdin: true,
        terminal: false,
    };
    let mut copy = container.exec_stream(&["sh", "-c", "head -c 160000 > /copy"], wanted)?;
    for piece in [b'x'; 160_000].chunks(16_000) {
        copy.send(STDIN, piece)?;
        std::thread::sleep(Duration::from_millis(200));
    }
    let copied = copy.finish()?;
    let len = container.shell("wc -c < /copy")?;
    ensure!(len == "160000", "{len} bytes: {copied:?}");

    let output = container.exec_by_ctr("cat; exit 9", b"typed")?;
    ensure!(
        output.status.code() == Some(9) && output.stdout == b"typed",
        "{output:?}"
    );
    Ok(())
}

fn terminal(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "terminal").run()?;
    let container = pod.container("idle").start()?;
    let shim = Shim::connect(&pod)?;
    let exec = Exec {
        container: &container.id,
        id: "tty",
        terminal: true,
        script: "test -t 0 && test -t 1 && test -t 2 && read go && stty size",
    };
    let execution = shim.exec(&pod.volume("io")?, exec)?;
    execution.resize(132, 43)?;
    execution.stdin()?.write_all(b"go\n")?;
    let (code, stdout, _) = execution.finish()?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    ensure!(
        code == 0 && stdout.ends_with("43 132\r\n"),
        "{code}: {stdout:?}"
    );
    Ok(())
}
