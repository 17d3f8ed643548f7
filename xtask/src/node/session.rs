//! One run of the node: the emulator, the streams between its command and us, and how it ended.
//!
//! Five ports of a virtio serial bus lead into the node: the command's stdin, stdout and stderr, a control port on which the node
//! says `at STAGE`, `ready` and `exit CODE`, and the pulse. Each is one end of a socket pair that the emulator inherits, as is its own command line, which
//! tells of a node that stands still.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::label::Labelled;
use super::qemu::Machine;
use super::rundir::RunDir;
use crate::progress::Step;

/// The emulator hands on what the node wrote within moments; a stream that was silent for this long has arrived whole.
const QUIET: Duration = Duration::from_millis(200);

/// A node that is not up by then never will be.
const START_LIMIT: Duration = Duration::from_secs(300);

/// How often an emulated node is interrupted.
///
/// QEMU (7.2 to 10.0, `helper_vmrun` in target/i386/tcg) sets a bit of `interrupt_request` without the lock that those hold who set others: now
/// and then an interrupt is lost when it comes as a nested guest is entered. The next one brings it along; but a node that went to sleep over
/// its timer's has no next one, and would sleep for ever.
const PULSE: Duration = Duration::from_secs(1);

/// Our ends of the node's ports.
struct Ports {
    stdin: UnixStream,
    stdout: UnixStream,
    stderr: UnixStream,
    control: UnixStream,
    pulse: UnixStream,
}

/// The emulator's ends; closed here once it runs.
struct MachineEnds(Vec<(&'static str, UnixStream)>);

impl MachineEnds {
    fn descriptors(&self) -> Vec<(&'static str, RawFd)> {
        self.0
            .iter()
            .map(|(name, socket)| (*name, socket.as_raw_fd()))
            .collect()
    }
}

/// Starts the machine, passes our streams to its command and returns the command's exit code. With a label, every line of its
/// output has that before it, and there is no input. With a limit, the command has this long.
///
/// # Errors
/// The emulator does not start, or the node ends without having run the command, or not in time: its console is then on stderr.
pub fn run(
    machine: Machine<'_>,
    label: Option<&'static str>,
    limit: Option<Duration>,
) -> Result<u8> {
    let step = Step::start(match label {
        Some(label) => format!("node {label} starts"),
        None => "node starts".to_owned(),
    });
    let (ports, ends) = open_ports()?;
    let (monitor, monitor_end) = open_port()?;
    let descriptors = ends.descriptors();
    let emulator = Machine {
        ports: &descriptors,
        monitor: Some(monitor_end.as_raw_fd()),
        ..machine
    };
    let mut emulator = emulator
        .command()
        .stdin(Stdio::null())
        .spawn()
        .context("cannot run qemu-system-x86_64")?;
    drop((ends, monitor_end));
    let code = converse(ports, step, label, limit);
    if !matches!(code, Ok(Some(_))) {
        show_state(monitor);
        // Without an answer there is nothing to wait for; a dead emulator is killed in vain.
        let _ = emulator.kill();
    }
    emulator.wait().context("cannot wait for the emulator")?;
    let logs = machine.run.keep_logs()?;
    match code? {
        Some(code) => Ok(code),
        None => {
            show_console(machine.run);
            bail!(
                "the node ended without an exit code; its logs are in {}",
                logs.display()
            );
        }
    }
}

fn open_ports() -> Result<(Ports, MachineEnds)> {
    let mut ends = Vec::new();
    let mut open = |name| -> Result<UnixStream> {
        let (ours, theirs) = open_port()?;
        ends.push((name, theirs));
        Ok(ours)
    };
    let ports = Ports {
        stdin: open("stdin")?,
        stdout: open("stdout")?,
        stderr: open("stderr")?,
        control: open("control")?,
        pulse: open("pulse")?,
    };
    Ok((ports, MachineEnds(ends)))
}

/// A socket pair: our end, and the one that the emulator inherits.
fn open_port() -> Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok((ours, theirs))
}

/// Follows the node from its start to the command's end; `None` when the node goes away before, or takes too long.
fn converse(
    ports: Ports,
    step: Step,
    label: Option<&'static str>,
    limit: Option<Duration>,
) -> Result<Option<u8>> {
    thread::spawn(move || keep_awake(ports.pulse));
    let mut control = ports.control.try_clone()?;
    control.set_read_timeout(Some(START_LIMIT))?;
    let mut lines = BufReader::new(ports.control).lines();
    loop {
        match lines.next() {
            Some(Ok(line)) if line == "ready" => break step.done(),
            Some(Ok(line)) => step.detail(&line),
            _ => return Ok(None),
        }
    }
    control.set_read_timeout(limit)?;
    // The emulator drops what it has not read of a socket that is closed both ways: ours stays open after our stdin's end.
    let stdin = ports.stdin.try_clone()?;
    let outputs = match label {
        None => {
            thread::spawn(move || forward_stdin(stdin));
            [
                Output::start(ports.stdout, io::stdout()),
                Output::start(ports.stderr, io::stderr()),
            ]
        }
        Some(label) => {
            stdin.shutdown(Shutdown::Write)?;
            [
                Output::start(ports.stdout, Labelled::new(label, io::stdout())),
                Output::start(ports.stderr, Labelled::new(label, io::stderr())),
            ]
        }
    };
    let Some(Ok(line)) = lines.next() else {
        return Ok(None);
    };
    let code = line
        .strip_prefix("exit ")
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("the node said {line:?} instead of an exit code"))?;
    for output in &outputs {
        output.wait_until_quiet();
    }
    // The node powers off when it hears us; if it is gone already, all the better.
    let _ = control.write_all(b"over\n");
    Ok(Some(code))
}

/// Interrupts the node until it has gone.
fn keep_awake(mut pulse: UnixStream) {
    while pulse.write_all(b"\n").is_ok() {
        thread::sleep(PULSE);
    }
}

/// Copies our stdin to the node until it ends; the node's command then sees an end of file, too.
fn forward_stdin(mut port: UnixStream) {
    // Fails when the node ends before our stdin does, which is how most commands end.
    let _ = io::copy(&mut io::stdin().lock(), &mut port);
    let _ = port.shutdown(Shutdown::Write);
}

/// One of the command's output streams on its way to ours.
struct Output {
    /// Counts up before and after each chunk is written: odd while one is being written.
    progress: Arc<AtomicU64>,
}

impl Output {
    fn start(mut port: UnixStream, mut to: impl Write + Send + 'static) -> Self {
        let progress = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&progress);
        thread::spawn(move || {
            let mut chunk = vec![0; 64 << 10];
            while let Ok(len) = port.read(&mut chunk) {
                let Some(bytes) = chunk.get(..len).filter(|bytes| !bytes.is_empty()) else {
                    break;
                };
                counter.fetch_add(1, Ordering::SeqCst);
                // A reader of ours that went away does not stop the command; the rest is dropped.
                let _ = to.write_all(bytes).and_then(|()| to.flush());
                counter.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { progress }
    }

    fn wait_until_quiet(&self) {
        loop {
            let before = self.progress.load(Ordering::SeqCst);
            thread::sleep(QUIET);
            if before.is_multiple_of(2) && self.progress.load(Ordering::SeqCst) == before {
                return;
            }
        }
    }
}

/// Asks the emulator, if it still runs, what its machine does.
fn show_state(mut monitor: UnixStream) {
    let mut answer = Vec::new();
    let asked = monitor
        .write_all(b"info status\ninfo registers\n")
        .and_then(|()| monitor.set_read_timeout(Some(QUIET)));
    if asked.is_ok() {
        // It never ends the stream; what came until it fell silent is the answer.
        let _ = monitor.read_to_end(&mut answer);
    }
    for line in String::from_utf8_lossy(&answer).lines() {
        eprintln!("node state: {}", line.trim_end());
    }
}

fn show_console(run: &RunDir) {
    let console = fs::read(run.console_log()).unwrap_or_default();
    for line in String::from_utf8_lossy(&console).lines() {
        eprintln!("node console: {}", line.trim_end());
    }
}
