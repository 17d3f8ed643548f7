//! Running other programs: quietly with progress, for their output, or with our own streams.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
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
    let name = name_of(command);
    let (reader, writer) = std::io::pipe()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    // The command keeps its copies of the pipe's write end: without this the read below would never see the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        step.detail(line.trim());
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
    }
    let status = child.wait()?;
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
