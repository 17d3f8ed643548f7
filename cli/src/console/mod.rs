//! `podvisor console`: this terminal, or these pipes, on a container's own streams: the serial console
//! of a machine.

mod escape;
mod pump;
mod terminal;

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use podvisor_proto::cri::v1::AttachRequest;

use crate::cri::Cri;
use crate::pods::{PodName, find_container};
use crate::run::logs;
use crate::streaming::Stream;
use pump::{End, Pump};
use terminal::{RawTerminal, Signals};

/// What of the transcript is shown first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transcript {
    /// Nothing.
    None,
    /// As many of its last lines.
    Last(usize),
    /// All that the runtime has kept.
    All,
}

/// Connects to the console of a running container of the pod, the first unless `container` names one,
/// until the machine ends, the escape is typed, or a signal comes; answers the exit code.
pub async fn console(
    cri: &Cri,
    pod: &PodName,
    container: Option<&str>,
    transcript: Transcript,
) -> Result<i32> {
    let (name, id) = find_container(cri, pod, container).await?;
    let streams = cri.container_streams(&id).await?;
    let request = AttachRequest {
        container_id: id.clone(),
        stdin: streams.stdin,
        tty: streams.tty,
        stdout: true,
        stderr: !streams.tty,
    };
    let stream = Stream::connect(&cri.attach(request).await?)?;
    if transcript != Transcript::None {
        let log = cri.container_status(&id).await?.log_path;
        print_transcript(Path::new(&log), transcript)?;
    }
    stream.set_nonblocking()?;
    let interactive = io::stdin().is_terminal() && streams.stdin && streams.tty;
    if !streams.stdin {
        eprintln!(
            "podvisor: container {name} has no stdin: its output only (stdin: true gives it one)"
        );
    } else if interactive {
        eprintln!(
            "podvisor: connected to {}/{name}; Ctrl-] disconnects",
            pod.name
        );
    }
    let signals = Signals::take().context("cannot take signals")?;
    let terminal = match interactive {
        true => Some(RawTerminal::enter().context("cannot set the terminal up")?),
        false => None,
    };
    let mut pump = Pump::new(stream, &signals, streams.stdin, terminal.is_some());
    let end = pump.run(&io::stdin(), &mut io::stdout(), &mut io::stderr());
    drop(terminal);
    match end? {
        End::Escaped => {
            eprintln!("\npodvisor: disconnected");
            Ok(0)
        }
        End::Signal(number) => Ok(128 + number),
        End::Stream(None) => Ok(0),
        End::Stream(Some(reason)) => bail!("{}: {reason}", pod.name),
    }
}

fn print_transcript(log: &Path, transcript: Transcript) -> Result<()> {
    let file = std::fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
    let mut lines = VecDeque::new();
    logs::lines(&file, &mut |line| {
        lines.push_back(line.to_vec());
        if let Transcript::Last(count) = transcript
            && lines.len() > count
        {
            lines.pop_front();
        }
    });
    let mut out = io::stdout().lock();
    for line in lines {
        out.write_all(&line)?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}
