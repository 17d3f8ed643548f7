//! Answers of the agent: lines of JSON.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{MAX_ANSWER_LEN, QgaError};

/// Characters of a refusal that are kept.
const MAX_REASON_LEN: usize = 200;
const PIECE_LEN: usize = 4096;
/// A program that a signal ended has this and the signal's number as its code.
const SIGNAL_BASE: i32 = 128;

/// What came and was not looked at yet.
#[derive(Default)]
pub(super) struct Answers {
    bytes: Vec<u8>,
}

impl Answers {
    /// The next line that has something on it.
    pub(super) async fn next<S>(&mut self, stream: &mut S) -> Result<Answer, QgaError>
    where
        S: AsyncRead + Unpin,
    {
        let mut searched = 0;
        loop {
            let rest = self.bytes.get(searched..).unwrap_or_default();
            if let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=searched + end).collect();
                searched = 0;
                if !line.trim_ascii().is_empty() {
                    return Ok(Answer(line));
                }
                continue;
            }
            if self.bytes.len() > MAX_ANSWER_LEN {
                self.bytes.clear();
                return Err(QgaError::TooLong);
            }
            searched = self.bytes.len();
            self.read(stream).await?;
        }
    }

    /// Throws away all up to `byte`, and it.
    pub(super) async fn skip_behind<S>(&mut self, byte: u8, stream: &mut S) -> Result<(), QgaError>
    where
        S: AsyncRead + Unpin,
    {
        loop {
            if let Some(at) = self.bytes.iter().position(|&other| other == byte) {
                self.bytes.drain(..=at);
                return Ok(());
            }
            self.bytes.clear();
            self.read(stream).await?;
        }
    }

    async fn read<S>(&mut self, stream: &mut S) -> Result<(), QgaError>
    where
        S: AsyncRead + Unpin,
    {
        let mut piece = [0; PIECE_LEN];
        let count = stream.read(&mut piece).await?;
        if count == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        self.bytes.extend(piece.iter().take(count));
        Ok(())
    }
}

/// One answer.
pub(super) struct Answer(Vec<u8>);

#[derive(Deserialize)]
struct Envelope {
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    class: String,
    #[serde(default)]
    desc: String,
}

impl Answer {
    /// What `command` yields.
    pub(super) fn result<T: DeserializeOwned>(self, command: &'static str) -> Result<T, QgaError> {
        let malformed = |_| QgaError::Malformed(command);
        let envelope: Envelope = serde_json::from_slice(&self.0).map_err(malformed)?;
        if let Some(Refusal { class, desc }) = envelope.error {
            let text = if desc.is_empty() { class } else { desc };
            let reason = text.chars().filter(|c| !c.is_control());
            let reason = reason.take(MAX_REASON_LEN).collect();
            return Err(QgaError::Refused { command, reason });
        }
        let result = envelope.result.ok_or(QgaError::Malformed(command))?;
        serde_json::from_value(result).map_err(malformed)
    }

    /// The marker that came back, if it is one.
    pub(super) fn into_marker(self) -> Option<u32> {
        self.result("guest-sync-delimited").ok()
    }
}

/// Of guest-exec.
#[derive(Deserialize)]
pub(super) struct Started {
    pub(super) pid: i64,
}

/// Of guest-exec-status.
#[derive(Deserialize)]
pub(super) struct Status {
    pub(super) exited: bool,
    exitcode: Option<i32>,
    signal: Option<i32>,
    #[serde(rename = "out-data", default)]
    pub(super) output: String,
    #[serde(rename = "err-data", default)]
    pub(super) error: String,
    #[serde(rename = "out-truncated", default)]
    pub(super) output_cut: bool,
    #[serde(rename = "err-truncated", default)]
    pub(super) error_cut: bool,
}

impl Status {
    /// A program's exit code as a shell counts it.
    pub(super) fn code(&self) -> Option<i32> {
        let signal = self
            .signal
            .and_then(|signal| signal.checked_add(SIGNAL_BASE));
        self.exitcode.or(signal)
    }
}
