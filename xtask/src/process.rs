//! Running other programs: quietly with progress, for their output, or with our own streams.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

use crate::progress::Step;

/// Lines of a failed program's output that are shown.
const TAIL_LINES: usize = 60;

/// Runs a program to success; its output feeds the step's display, and its end is shown when it fails.
///
/// # Errors
/// The program cannot be started or fails.
pub fn run(step: &Step, command: &mut Command) -> Result<()> {
    let (reader, writer) = std::io::pipe()?;
    let name = name_of(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    // The command keeps its copies of the pipe's write end: without this the reading below would never see the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let tail = follow(step, reader)?;
    succeeded(&name, child.wait()?, tail)
}

/// As [`run`], but only stderr feeds the display, and stdout is returned without its final newline.
///
/// # Errors
/// The program cannot be started or fails, or its stdout is not UTF-8.
pub fn run_for_output(step: &Step, command: &mut Command) -> Result<String> {
    let name = name_of(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    let (Some(stderr), Some(stdout)) = (child.stderr.take(), child.stdout.take()) else {
        bail!("{name} has no streams");
    };
    let reader = std::thread::spawn(move || std::io::read_to_string(stdout));
    let tail = follow(step, stderr)?;
    let output = reader
        .join()
        .map_err(|_| anyhow::anyhow!("cannot read from {name}"))??;
    succeeded(&name, child.wait()?, tail)?;
    Ok(output.trim_end().to_owned())
}

/// Shows each line as the step's state and returns the last ones.
fn follow(step: &Step, output: impl Read) -> Result<VecDeque<String>> {
    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        step.detail(line.trim());
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
    }
    Ok(tail)
}

fn succeeded(name: &str, status: ExitStatus, tail: VecDeque<String>) -> Result<()> {
    if !status.success() {
        for line in tail {
            eprintln!("{line}");
        }
        bail!("{name} failed: {status}");
    }
    Ok(())
}

/// Runs a program to success and returns its stdout without the final newline. Its stderr is ours.
///
/// # Errors
/// The program cannot be started or fails, or its output is not UTF-8.
pub fn output(command: &mut Command) -> Result<String> {
    let name = name_of(command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        bail!("{name} failed: {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

/// Runs a program with our own streams and returns how it ended.
///
/// # Errors
/// The program cannot be started.
pub fn passthrough(command: &mut Command) -> Result<ExitStatus> {
    let name = name_of(command);
    command
        .status()
        .with_context(|| format!("cannot run {name}"))
}

/// Runs a program with our own streams to success.
///
/// # Errors
/// The program cannot be started or fails.
pub fn check(command: &mut Command) -> Result<()> {
    let name = name_of(command);
    let status = passthrough(command)?;
    if !status.success() {
        bail!("{name} failed: {status}");
    }
    Ok(())
}

/// A program that Debian keeps in /sbin, where an ordinary PATH does not lead.
pub fn system_tool(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

fn name_of(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}
