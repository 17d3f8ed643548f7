//! A client of the QEMU guest agent, for machines that have it and not ours: one command at a time
//! over its port, each with a deadline.
//!
//! The port is one stream for all who ever talked to the agent. Before the first command, and
//! after each that came to no end, a marker goes through the agent and back, and all before it is
//! somebody else's (guest-sync-delimited).

mod session;
mod wire;

use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout_at};

use self::wire::{Answers, Started, Status};

pub use self::session::Qga;

/// The name of the port at which the agent listens.
pub const PORT: &str = "org.qemu.guest_agent.0";
/// Most bytes of one answer, and so of a program's output (in base64, both streams together). A
/// guest may not fill this process.
pub const MAX_ANSWER_LEN: usize = 8 << 20;
/// Most bytes of input for a program: the agent takes them in the command.
pub const MAX_INPUT_LEN: usize = 1 << 20;
/// What ends whatever the agent has read so far, and what its answer to a marker begins with.
const RESYNC: u8 = 0xff;

/// Why a command came to nothing.
#[derive(Debug, Error)]
pub enum QgaError {
    /// The port is closed: no agent runs, or it ended.
    #[error("no program in the machine has the port {PORT} open")]
    Closed,
    /// The port is gone.
    #[error("the guest agent's port failed")]
    Port(#[source] io::Error),
    /// It does not answer.
    #[error("the guest agent did not answer '{command}' within {} ms", .timeout.as_millis())]
    Timeout {
        /// What was asked.
        command: &'static str,
        /// How long was waited.
        timeout: Duration,
    },
    /// It answers something else.
    #[error("the guest agent's answer to '{0}' is not understood")]
    Malformed(&'static str),
    /// It answers too much.
    #[error("the guest agent's answer has more than {MAX_ANSWER_LEN} bytes")]
    TooLong,
    /// It refuses.
    #[error("the guest agent refuses '{command}': {reason}")]
    Refused {
        /// What was asked.
        command: &'static str,
        /// What it says.
        reason: String,
    },
    /// The input of a program does not fit a command.
    #[error("the input has more than {MAX_INPUT_LEN} bytes, which the guest agent takes at most")]
    Input,
}

impl From<io::Error> for QgaError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotConnected => Self::Closed,
            _ => Self::Port(error),
        }
    }
}

/// A program to run in the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// Its path, or a name to be found by the agent's own PATH.
    pub path: String,
    /// Its arguments, without its own name.
    pub arguments: Vec<String>,
    /// Its environment, `NAME=value`; with none it is the agent's.
    pub environment: Vec<String>,
    /// What it reads.
    pub input: Vec<u8>,
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code, 128 and the signal's number if that ended it.
    pub code: i32,
    /// What it wrote.
    pub output: Vec<u8>,
    /// What it wrote to its error stream.
    pub error: Vec<u8>,
    /// Whether the agent has kept all of it.
    pub complete: bool,
}

/// A running program's number in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestPid(i64);

/// An agent behind a port.
pub struct GuestAgent<S> {
    stream: S,
    answers: Answers,
    timeout: Duration,
    marker: u32,
    /// The next thing that comes is the answer to the next command.
    in_step: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> GuestAgent<S> {
    /// The agent behind `stream`, which has `timeout` for each answer.
    pub fn new(stream: S, timeout: Duration) -> Self {
        Self {
            stream,
            answers: Answers::default(),
            timeout,
            marker: 0,
            in_step: false,
        }
    }

    /// Makes sure that it is there.
    ///
    /// # Errors
    /// [`QgaError`].
    pub async fn ping(&mut self) -> Result<(), QgaError> {
        self.call::<Value>("guest-ping", Value::Null)
            .await
            .map(drop)
    }

    /// Starts a program.
    ///
    /// # Errors
    /// [`QgaError`]; the program does not run.
    pub async fn start(&mut self, program: &Program) -> Result<GuestPid, QgaError> {
        if program.input.len() > MAX_INPUT_LEN {
            return Err(QgaError::Input);
        }
        let mut arguments = json!({
            "path": program.path,
            "arg": program.arguments,
            "capture-output": true,
        });
        if let Some(arguments) = arguments.as_object_mut() {
            if !program.environment.is_empty() {
                arguments.insert("env".to_owned(), json!(program.environment));
            }
            if !program.input.is_empty() {
                let input = BASE64.encode(&program.input);
                arguments.insert("input-data".to_owned(), Value::String(input));
            }
        }
        let started: Started = self.call("guest-exec", arguments).await?;
        Ok(GuestPid(started.pid))
    }

    /// How a program ended, if it has. The agent forgets it then.
    ///
    /// # Errors
    /// [`QgaError`].
    pub async fn status(&mut self, pid: GuestPid) -> Result<Option<Ended>, QgaError> {
        const COMMAND: &str = "guest-exec-status";
        let status: Status = self.call(COMMAND, json!({ "pid": pid.0 })).await?;
        if !status.exited {
            return Ok(None);
        }
        let decode = |data: &str| {
            BASE64
                .decode(data)
                .map_err(|_| QgaError::Malformed(COMMAND))
        };
        Ok(Some(Ended {
            code: status.code().ok_or(QgaError::Malformed(COMMAND))?,
            output: decode(&status.output)?,
            error: decode(&status.error)?,
            complete: !status.output_cut && !status.error_cut,
        }))
    }

    async fn call<T: DeserializeOwned>(
        &mut self,
        command: &'static str,
        arguments: Value,
    ) -> Result<T, QgaError> {
        let timeout = self.timeout;
        let deadline = Instant::now() + timeout;
        let late = |_| QgaError::Timeout { command, timeout };
        if !self.in_step {
            timeout_at(deadline, self.synchronize())
                .await
                .map_err(late)??;
        }
        let message = match arguments {
            Value::Null => json!({ "execute": command }),
            arguments => json!({ "execute": command, "arguments": arguments }),
        };
        // Dropped in the middle, this leaves the stream out of step, and the flag says so.
        self.in_step = false;
        let answered = timeout_at(deadline, self.exchange(&message)).await;
        let answer = answered.map_err(late)??;
        self.in_step = true;
        answer.result(command)
    }

    async fn exchange(&mut self, message: &Value) -> Result<wire::Answer, QgaError> {
        let mut line = message.to_string().into_bytes();
        line.push(b'\n');
        self.stream.write_all(&line).await?;
        self.stream.flush().await?;
        self.answers.next(&mut self.stream).await
    }

    /// Has a marker go through the agent and back.
    async fn synchronize(&mut self) -> Result<(), QgaError> {
        const COMMAND: &str = "guest-sync-delimited";
        self.marker = self.marker.wrapping_add(1);
        let marker = self.marker;
        let message = json!({ "execute": COMMAND, "arguments": { "id": marker } });
        let mut line = vec![RESYNC];
        line.extend(message.to_string().into_bytes());
        line.push(b'\n');
        self.stream.write_all(&line).await?;
        self.stream.flush().await?;
        loop {
            self.answers.skip_behind(RESYNC, &mut self.stream).await?;
            let answer = self.answers.next(&mut self.stream).await;
            let found = answer.ok().and_then(wire::Answer::into_marker);
            if found == Some(marker) {
                self.in_step = true;
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests;
