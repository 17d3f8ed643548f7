//! Copies between the host's ends and the guest's. Nobody buffers more than a piece: who reads
//! slowly slows the writer.

use std::io;
use std::time::Duration;

use podvisor_proto::agent::STREAM_PORT;
use podvisor_proto::agent::v1::StreamTokens;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::input::Input;
use super::output::Output;
use super::{Stdio, StdioAddress, StdioError};
use crate::guest::{Machine, Stream};

/// Bytes moved at a time: half of what a FIFO holds.
pub(super) const PIECE_LEN: usize = 32 << 10;

/// The copies of one process.
#[derive(Default)]
pub struct Streams {
    outputs: Vec<JoinHandle<()>>,
    /// What stdin is copied from and to once the process is started.
    waiting_input: Option<(StdioAddress, Stream)>,
    input: Option<JoinHandle<()>>,
    held_open: Option<pipe::Sender>,
    is_input_closed: bool,
    /// Of a process with input, until it has ended: its output stays open. containerd closes the input of an execution
    /// whose output has ended (github.com/containerd/containerd/issues/12734), as that of `sh -c "cat > file"` may at once.
    running: Option<watch::Sender<()>>,
}

/// Connects the streams for which there are tokens and begins to copy, all but stdin
/// ([`Streams::begin_input`]).
///
/// # Errors
/// [`StdioError`]; nothing is copied then.
pub async fn attach(
    machine: &dyn Machine,
    tokens: &StreamTokens,
    stdio: &Stdio,
) -> Result<Streams, StdioError> {
    let stdin = StdioAddress::parse(&stdio.stdin)?;
    let stdout = Output::open(&StdioAddress::parse(&stdio.stdout)?)?;
    let stderr = Output::open(&StdioAddress::parse(&stdio.stderr)?)?;
    // Together: each takes a round trip to the guest.
    let (stdin_stream, stdout_stream, stderr_stream) = tokio::try_join!(
        dial(machine, &tokens.stdin),
        dial(machine, &tokens.stdout),
        dial(machine, &tokens.stderr),
    )?;
    let mut streams = Streams::default();
    streams.set_waiting_input(Some(stdin).zip(stdin_stream));
    for (output, stream) in [(stdout, stdout_stream), (stderr, stderr_stream)] {
        if let (Some(output), Some(stream)) = (output, stream) {
            streams.copy_output(stream, output);
        }
    }
    Ok(streams)
}

/// The far ends of a process's streams, where they are in this process.
#[derive(Default)]
pub struct NearEnds {
    /// What is read from containerd.
    pub stdin: Option<DuplexStream>,
    /// Where to write for containerd.
    pub stdout: Option<DuplexStream>,
    /// The same for errors.
    pub stderr: Option<DuplexStream>,
}

/// Connects the streams to ends in this process and begins to copy, all but stdin
/// ([`Streams::begin_input`]).
///
/// # Errors
/// [`StdioError`]; nothing is copied then.
pub fn attach_here(stdio: &Stdio) -> Result<(Streams, NearEnds), StdioError> {
    let stdin = StdioAddress::parse(&stdio.stdin)?;
    let stdout = Output::open(&StdioAddress::parse(&stdio.stdout)?)?;
    let stderr = Output::open(&StdioAddress::parse(&stdio.stderr)?)?;
    let mut streams = Streams::default();
    let mut ends = NearEnds::default();
    if stdin != StdioAddress::None {
        let (ours, theirs) = duplex(PIECE_LEN);
        streams.set_waiting_input(Some((stdin, Box::new(ours))));
        ends.stdin = Some(theirs);
    }
    for (output, end) in [(stdout, &mut ends.stdout), (stderr, &mut ends.stderr)] {
        if let Some(output) = output {
            let (ours, theirs) = duplex(PIECE_LEN);
            streams.copy_output(Box::new(ours), output);
            *end = Some(theirs);
        }
    }
    Ok((streams, ends))
}

/// Connects to the stream that `token` names; an empty token names none.
async fn dial(machine: &dyn Machine, token: &[u8]) -> Result<Option<Stream>, StdioError> {
    if token.is_empty() {
        return Ok(None);
    }
    let mut stream = machine
        .connect(STREAM_PORT)
        .await
        .map_err(StdioError::Guest)?;
    stream.write_all(token).await.map_err(StdioError::Guest)?;
    Ok(Some(stream))
}

/// Copies output, and keeps it open until `end` if there is to be one.
async fn copy_output(stream: Stream, mut output: Output, end: Option<watch::Receiver<()>>) {
    if let Err(error) = copy(stream, &mut output).await {
        tracing::debug!(%error, "output ended");
    }
    if let Some(mut end) = end {
        // The sender says nothing, it goes.
        let _ = end.changed().await;
    }
}

async fn copy_input(receiver: pipe::Receiver, mut stream: Stream) {
    if let Err(error) = copy(receiver, &mut stream).await {
        tracing::debug!(%error, "input ended");
    }
    let _ = stream.shutdown().await;
    // The connection stays until the process is deleted: closing it now could reset the stream
    // before the guest has read all of it.
    std::future::pending::<()>().await;
}

/// Moves all bytes until their end, which is not passed on.
///
/// # Errors
/// What either side says.
pub async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE_LEN];
    loop {
        let len = from.read(&mut piece).await?;
        match piece.get(..len) {
            None | Some([]) => return Ok(()),
            Some(data) => to.write_all(data).await?,
        }
    }
}

impl Streams {
    fn set_waiting_input(&mut self, input: Option<(StdioAddress, Stream)>) {
        self.running = input.is_some().then(|| watch::Sender::new(()));
        self.waiting_input = input;
    }

    /// Begins to copy output, which ends no earlier than a process that has input.
    fn copy_output(&mut self, stream: Stream, output: Output) {
        let end = self.running.as_ref().map(watch::Sender::subscribe);
        self.add_output(tokio::spawn(copy_output(stream, output, end)));
    }

    /// The process has ended: so does its output, when all of it has reached containerd.
    pub fn process_ended(&mut self) {
        self.running = None;
    }

    /// Adds a copy of output, which ends by itself.
    pub(super) fn add_output(&mut self, copy: JoinHandle<()>) {
        self.outputs.push(copy);
    }

    /// Sets the copy of stdin, and the end of it that keeps it open, unless it was closed before.
    pub(super) fn set_input(&mut self, copy: JoinHandle<()>, held_open: pipe::Sender) {
        self.input = Some(copy);
        self.held_open = (!self.is_input_closed).then_some(held_open);
    }

    /// Begins to copy stdin, at the process's start: whoever writes earlier (`ctr tasks exec`) may come to
    /// the input's end before it is able to tell ([`Self::close_input`]).
    ///
    /// # Errors
    /// [`StdioError::Open`].
    pub fn begin_input(&mut self) -> Result<(), StdioError> {
        let Some((address, stream)) = self.waiting_input.take() else {
            return Ok(());
        };
        if let Some(Input {
            receiver,
            held_open,
        }) = Input::open(&address)?
        {
            self.set_input(tokio::spawn(copy_input(receiver, stream)), held_open);
        }
        Ok(())
    }

    /// Lets stdin end once containerd has closed it, too.
    pub fn close_input(&mut self) {
        self.is_input_closed = true;
        self.held_open = None;
    }

    /// Waits until all output has reached containerd, for at most `timeout`, and lets go of the
    /// host's ends.
    pub async fn drain(mut self, timeout: Duration) {
        self.process_ended();
        let outputs = std::mem::take(&mut self.outputs);
        let aborts: Vec<_> = outputs.iter().map(JoinHandle::abort_handle).collect();
        let all = async {
            for output in outputs {
                let _ = output.await;
            }
        };
        if tokio::time::timeout(timeout, all).await.is_err() {
            tracing::warn!("output was not taken in time and is dropped");
            aborts.iter().for_each(tokio::task::AbortHandle::abort);
        }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        for task in self.outputs.iter().chain(&self.input) {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use tempfile::TempDir;

    use super::*;

    /// A FIFO, and the folder that keeps it.
    fn fifo(name: &str) -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        (folder, path)
    }

    /// The streams of a process that has stdin alone, and that in this process.
    fn attached(stdin: &Path) -> (Streams, DuplexStream) {
        let stdio = Stdio {
            stdin: stdin.display().to_string(),
            ..Stdio::default()
        };
        let (streams, ends) = attach_here(&stdio).unwrap();
        (streams, ends.stdin.unwrap())
    }

    #[tokio::test]
    async fn output_survives_a_reader_that_goes_and_comes_back() {
        let (_folder, path) = fifo("stdout");
        let output = Output::open(&StdioAddress::Path(path.clone()))
            .unwrap()
            .unwrap();
        let (mut guest, ours) = tokio::io::duplex(64);
        let task = tokio::spawn(copy_output(Box::new(ours), output, None));
        let first = pipe::OpenOptions::new().open_receiver(&path).unwrap();
        drop(first);
        guest.write_all(b"still here").await.unwrap();
        let mut second = pipe::OpenOptions::new().open_receiver(&path).unwrap();
        drop(guest);
        let mut text = String::new();
        second.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "still here");
        task.await.unwrap();
    }

    #[tokio::test]
    async fn output_of_a_process_with_input_ends_with_the_process() {
        let (_stdin, stdin) = fifo("stdin");
        let (_stdout, stdout) = fifo("stdout");
        let stdio = Stdio {
            stdin: stdin.display().to_string(),
            stdout: stdout.display().to_string(),
            ..Stdio::default()
        };
        let (mut streams, ends) = attach_here(&stdio).unwrap();
        let mut reader = pipe::OpenOptions::new().open_receiver(&stdout).unwrap();
        let mut output = ends.stdout.unwrap();
        output.write_all(b"said").await.unwrap();
        drop(output);
        let mut said = [0; 4];
        reader.read_exact(&mut said).await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(50), reader.read_u8()).await;
        assert!(early.is_err(), "its output ended before it did");
        streams.process_ended();
        assert_eq!(reader.read(&mut said).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn input_is_taken_from_the_start_on() {
        let (_folder, path) = fifo("stdin");
        let (mut streams, mut stdin) = attached(&path);
        let writer = pipe::OpenOptions::new().open_sender(&path);
        assert!(writer.is_err(), "nobody reads before the start");
        streams.begin_input().unwrap();
        let mut writer = pipe::OpenOptions::new().open_sender(&path).unwrap();
        writer.write_all(b"typed").await.unwrap();
        drop(writer);
        streams.close_input();
        let mut text = String::new();
        stdin.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "typed");
    }

    #[tokio::test]
    async fn input_that_was_closed_early_ends_at_the_start() {
        let (_folder, path) = fifo("stdin");
        let (mut streams, mut stdin) = attached(&path);
        streams.close_input();
        streams.begin_input().unwrap();
        let mut text = String::new();
        stdin.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "");
    }

    #[tokio::test]
    async fn input_ends_only_after_it_was_closed() {
        let (_folder, path) = fifo("stdin");
        let Input {
            receiver,
            held_open,
        } = Input::open(&StdioAddress::Path(path.clone()))
            .unwrap()
            .unwrap();
        let (mut guest, ours) = tokio::io::duplex(64);
        let task = tokio::spawn(copy_input(receiver, Box::new(ours)));
        let mut writer = pipe::OpenOptions::new().open_sender(&path).unwrap();
        writer.write_all(b"line").await.unwrap();
        drop(writer);
        let mut line = [0; 4];
        guest.read_exact(&mut line).await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(50), guest.read_u8()).await;
        assert!(early.is_err(), "stdin ended before it was closed");
        drop(held_open);
        assert_eq!(guest.read(&mut line).await.unwrap(), 0);
        task.abort();
    }
}
