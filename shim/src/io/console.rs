//! A machine's console as the standard streams of its container.

use tokio::io::AsyncWriteExt as _;
use tokio::sync::oneshot;

use super::copy::{Streams, copy};
use super::input::Input;
use super::output::Output;
use super::{Stdio, StdioAddress, StdioError};
use crate::guest::Stream;

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

    /// Connects them to `console`. When that has ended, `last_words` end the transcript.
    pub fn connect(self, console: Stream, last_words: oneshot::Receiver<String>) -> Streams {
        let (mut reader, writer) = tokio::io::split(console);
        let Self { input, output } = self;
        let copies = async move {
            let Some(mut output) = output else {
                // Nobody listens: the guest is not to wait for that.
                let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
                return;
            };
            if let Err(error) = copy(&mut reader, &mut output).await {
                tracing::debug!(%error, "the console's output ended");
            }
            if let Ok(words) = last_words.await {
                write_line(&mut output, &words).await;
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
    use tokio::io::AsyncReadExt as _;

    fn ends(folder: &tempfile::TempDir) -> (ConsoleEnds, std::path::PathBuf) {
        let path = folder.path().join("log");
        let stdio = Stdio {
            stdout: format!("file://{}", path.display()),
            ..Stdio::default()
        };
        (ConsoleEnds::open(&stdio).unwrap(), path)
    }

    #[tokio::test]
    async fn the_transcript_begins_and_ends_with_what_we_say() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ends, path) = ends(&folder);
        ends.say("filling").await;
        let (mut guest, console) = tokio::io::duplex(64);
        let (last, words) = oneshot::channel();
        let streams = ends.connect(Box::new(console), words);
        guest.write_all(b"login: ").await.unwrap();
        drop(guest);
        last.send("it panicked".to_owned()).unwrap();
        streams.drain(std::time::Duration::from_secs(9)).await;
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(
            text,
            "\r\npodvisor: filling\r\nlogin: \r\npodvisor: it panicked\r\n"
        );
    }

    #[tokio::test]
    async fn a_console_without_readers_does_not_hold_the_guest_up() {
        let (mut guest, console) = tokio::io::duplex(64);
        let (_last, words) = oneshot::channel();
        let ends = ConsoleEnds::open(&Stdio::default()).unwrap();
        let _streams = ends.connect(Box::new(console), words);
        guest.write_all(&[b'x'; 4096]).await.unwrap();
        let mut none = [0; 1];
        let input =
            tokio::time::timeout(std::time::Duration::from_millis(20), guest.read(&mut none));
        assert!(input.await.is_err(), "nobody types");
    }
}
