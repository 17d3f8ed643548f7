//! A machine's console as the standard streams of its container.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::copy::{PIECE_LEN, Streams, copy};
use super::input::Input;
use super::output::Output;
use super::{Stdio, StdioAddress, StdioError};
use crate::guest::Stream;

/// Takes lines of this program's own for the transcript of a running machine, which does not end before this is
/// dropped.
pub struct Transcript(mpsc::UnboundedSender<String>);

/// The lines that a transcript is told.
pub struct Lines(mpsc::UnboundedReceiver<String>);

impl Transcript {
    /// One that is told nothing yet.
    pub fn new() -> (Self, Lines) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), Lines(receiver))
    }

    /// Writes a line between what the guest says, or after it.
    pub fn say(&self, line: String) {
        // Nobody may read it any more.
        let _ = self.0.send(line);
    }

    /// Says lines as well, but does not keep the transcript from its end.
    pub fn listener(&self) -> impl Fn(String) + Send + Sync + 'static {
        let sender = self.0.downgrade();
        move |line| {
            if let Some(sender) = sender.upgrade() {
                Self(sender).say(line);
            }
        }
    }
}

/// The host's ends, before and while the machine runs.
pub struct ConsoleEnds {
    input: Option<Input>,
    output: Option<Output>,
}

impl ConsoleEnds {
    /// Opens them.
    ///
    /// # Errors
    /// [`StdioError`].
    pub fn open(stdio: &Stdio) -> Result<Self, StdioError> {
        Ok(Self {
            input: Input::open(&StdioAddress::parse(&stdio.stdin)?)?,
            output: Output::open(&StdioAddress::parse(&stdio.stdout)?)?,
        })
    }

    /// Writes a line of this program's own to the transcript.
    pub async fn say(&mut self, line: &str) {
        if let Some(output) = &mut self.output {
            write_line(output, line).await;
        }
    }

    /// Connects them to `console`. `lines` are written between what comes from there, and after it.
    pub fn connect(self, console: Stream, mut lines: Lines) -> Streams {
        let (mut reader, writer) = tokio::io::split(console);
        let Self { input, output } = self;
        let copies = async move {
            let Some(mut output) = output else {
                // Nobody listens: the guest is not to wait for that.
                let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
                return;
            };
            if let Err(error) = transcribe(&mut reader, &mut lines, &mut output).await {
                tracing::debug!(%error, "the console's output ended");
            }
            while let Some(line) = lines.0.recv().await {
                write_line(&mut output, &line).await;
            }
        };
        let mut streams = Streams::default();
        streams.add_output(tokio::spawn(copies));
        if let Some(Input {
            receiver,
            held_open,
        }) = input
        {
            let typing = async move {
                if let Err(error) = copy(receiver, writer).await {
                    tracing::debug!(%error, "the console's input ended");
                }
            };
            streams.set_input(tokio::spawn(typing), held_open);
        }
        streams
    }
}

/// Writes what the guest says to its end, with lines in between.
async fn transcribe(
    guest: &mut (impl AsyncRead + Unpin),
    lines: &mut Lines,
    output: &mut Output,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE_LEN];
    loop {
        tokio::select! {
            len = guest.read(&mut piece) => match piece.get(..len?) {
                None | Some([]) => return Ok(()),
                Some(data) => output.write_all(data).await?,
            },
            Some(line) = lines.0.recv() => write_line(output, &line).await,
        }
    }
}

/// A line as a terminal in raw mode shows it.
async fn write_line(output: &mut Output, line: &str) {
    let text = format!("\r\npodvisor: {}\r\n", line.replace('\n', "\r\n"));
    if let Err(error) = output.write_all(text.as_bytes()).await {
        tracing::debug!(%error, "the transcript is not written to");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(folder: &tempfile::TempDir) -> (ConsoleEnds, std::path::PathBuf) {
        let path = folder.path().join("log");
        let stdio = Stdio {
            stdout: format!("file://{}", path.display()),
            ..Stdio::default()
        };
        (ConsoleEnds::open(&stdio).unwrap(), path)
    }

    /// Waits until the transcript ends with `end`.
    async fn until(path: &std::path::Path, end: &str) {
        while !std::fs::read_to_string(path).unwrap().ends_with(end) {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn the_transcript_begins_and_ends_with_what_we_say() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ends, path) = ends(&folder);
        ends.say("filling").await;
        let (mut guest, console) = tokio::io::duplex(64);
        let (transcript, lines) = Transcript::new();
        let of_a_disk = transcript.listener();
        let streams = ends.connect(Box::new(console), lines);
        guest.write_all(b"login: ").await.unwrap();
        until(&path, "login: ").await;
        of_a_disk("disk /: it is full".to_owned());
        until(&path, "full\r\n").await;
        guest.write_all(b"on").await.unwrap();
        drop(guest);
        until(&path, "on").await;
        transcript.say("it panicked".to_owned());
        drop(transcript);
        // A disk may be there longer than its transcript.
        of_a_disk("too late".to_owned());
        streams.drain(std::time::Duration::from_secs(9)).await;
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(
            text,
            "\r\npodvisor: filling\r\nlogin: \r\npodvisor: disk /: it is full\r\non\r\npodvisor: it panicked\r\n"
        );
    }

    #[tokio::test]
    async fn a_console_without_readers_does_not_hold_the_guest_up() {
        let (mut guest, console) = tokio::io::duplex(64);
        let (_transcript, lines) = Transcript::new();
        let ends = ConsoleEnds::open(&Stdio::default()).unwrap();
        let _streams = ends.connect(Box::new(console), lines);
        guest.write_all(&[b'x'; 4096]).await.unwrap();
        let mut none = [0; 1];
        let input =
            tokio::time::timeout(std::time::Duration::from_millis(20), guest.read(&mut none));
        assert!(input.await.is_err(), "nobody types");
    }
}
