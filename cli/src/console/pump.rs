//! Moves bytes between this process's streams and a container's, until one of them ends.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::read;
use serde::Deserialize;

use super::escape::until_escape;
use super::terminal::{self, Signals, Taken};
use crate::streaming::{Received, Stream, channel};

/// How much input is taken at once: what does not go out yet waits where it came from.
const INPUT_LEN: usize = 4096;

/// How many messages are written out before input has its turn: a console that never falls silent can
/// still be left.
const OUTPUT_MESSAGES: usize = 64;

/// Why a console is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The escape was typed.
    Escaped,
    /// This signal came.
    Signal(i32),
    /// The runtime ended the stream, with a reason if it failed.
    Stream(Option<String>),
}

/// A container's streams, and what of them this process is connected to.
pub struct Pump<'a> {
    stream: Stream,
    signals: &'a Signals,
    /// Whether input is still taken.
    input: bool,
    /// Whether a terminal is at this end, with a size and an escape.
    terminal: bool,
    /// Whether all is sent.
    sent: bool,
    failure: Option<String>,
}

/// A `v1.Status`.
#[derive(Deserialize)]
#[serde(default)]
struct Status {
    status: String,
    message: String,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            status: "Failure".to_owned(),
            message: "the runtime gave no reason".to_owned(),
        }
    }
}

impl<'a> Pump<'a> {
    /// A pump for a stream that does not block.
    pub fn new(stream: Stream, signals: &'a Signals, input: bool, terminal: bool) -> Self {
        Self {
            stream,
            signals,
            input,
            terminal,
            sent: true,
            failure: None,
        }
    }

    /// Pumps to the end.
    ///
    /// # Errors
    /// A stream at either end is broken.
    pub fn run(
        &mut self,
        input: &impl AsFd,
        stdout: &mut impl Write,
        stderr: &mut impl Write,
    ) -> Result<End> {
        self.resize()?;
        loop {
            let output = self.take_output(stdout, stderr)?;
            if output == Output::Ended {
                return Ok(End::Stream(self.failure.take()));
            }
            let ready = self.wait(input.as_fd(), output)?;
            if ready.signal
                && let Some(end) = self.take_signals()?
            {
                return Ok(end);
            }
            if !self.sent {
                self.sent = self.stream.flush()?;
            }
            if ready.input && self.take_input(input.as_fd())? {
                return Ok(End::Escaped);
            }
        }
    }

    fn wait(&self, input: BorrowedFd<'_>, output: Output) -> Result<Ready> {
        let mut socket = PollFlags::POLLIN;
        if !self.sent {
            socket |= PollFlags::POLLOUT;
        }
        let mut waiting = vec![
            PollFd::new(self.stream.as_fd(), socket),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        if self.input && self.sent {
            waiting.push(PollFd::new(input, PollFlags::POLLIN));
        }
        // The stream may hold messages that poll(2) does not see.
        let timeout = match output {
            Output::More => PollTimeout::ZERO,
            Output::Drained | Output::Ended => PollTimeout::NONE,
        };
        match poll(&mut waiting, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for the console"),
        }
        let ready = |index: usize| {
            waiting
                .get(index)
                .is_some_and(|one| one.any() == Some(true))
        };
        Ok(Ready {
            signal: ready(1),
            input: ready(2),
        })
    }

    fn take_signals(&mut self) -> Result<Option<End>> {
        while let Some(taken) = self.signals.next()? {
            match taken {
                Taken::Resized => self.resize()?,
                Taken::End(number) => return Ok(Some(End::Signal(number))),
            }
        }
        Ok(None)
    }

    fn resize(&mut self) -> Result<()> {
        if let Some((columns, rows)) = terminal::size().filter(|_| self.terminal) {
            self.sent = self.stream.resize(columns, rows)?;
        }
        Ok(())
    }

    /// Writes out what has come.
    fn take_output(&mut self, stdout: &mut impl Write, stderr: &mut impl Write) -> Result<Output> {
        let mut output = Output::More;
        for _ in 0..OUTPUT_MESSAGES {
            match self.stream.receive()? {
                Received::Data(channel::STDOUT, data) => write_all(stdout, &data)?,
                Received::Data(channel::STDERR, data) => write_all(stderr, &data)?,
                Received::Data(channel::STATUS, data) => {
                    let status: Status = serde_json::from_slice(&data).unwrap_or_default();
                    self.failure = (status.status != "Success").then_some(status.message);
                }
                Received::Data(_, _) => {}
                Received::Nothing => {
                    output = Output::Drained;
                    break;
                }
                Received::End => {
                    output = Output::Ended;
                    break;
                }
            }
        }
        stdout.flush().context("cannot write to stdout")?;
        Ok(output)
    }

    /// Sends what was typed; answers whether the escape was.
    fn take_input(&mut self, input: BorrowedFd<'_>) -> Result<bool> {
        let mut buffer = [0; INPUT_LEN];
        let len = match read(input, &mut buffer) {
            Ok(len) => len,
            Err(Errno::EINTR | Errno::EAGAIN) => return Ok(false),
            Err(error) => return Err(error).context("cannot read stdin"),
        };
        if len == 0 {
            self.input = false;
            return Ok(false);
        }
        let typed = buffer.get(..len).unwrap_or_default();
        let (typed, escaped) = match self.terminal {
            true => until_escape(typed),
            false => (typed, false),
        };
        if !typed.is_empty() {
            self.sent = self.stream.send(channel::STDIN, typed)?;
        }
        Ok(escaped)
    }
}

/// How much of what has come is written out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    /// There may be more.
    More,
    /// All that there is now.
    Drained,
    /// All that there will be.
    Ended,
}

/// What can be gone on with.
struct Ready {
    signal: bool,
    input: bool,
}

fn write_all(to: &mut impl Write, data: &[u8]) -> Result<()> {
    match to.write_all(data) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(error).context("stdout takes nothing: it must not be non-blocking")
        }
        result => result.context("cannot write out what has come"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;

    use nix::unistd::pipe;
    use tungstenite::{Bytes, Message};

    use super::*;
    use crate::streaming::testing::server;

    /// What comes out at stdout and stderr, and the end.
    fn run(url: &str, input: &OwnedFd, terminal: bool) -> (End, Vec<u8>, Vec<u8>) {
        let stream = Stream::connect(url).unwrap();
        stream.set_nonblocking().unwrap();
        let signals = Signals::take().unwrap();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let end = Pump::new(stream, &signals, true, terminal)
            .run(input, &mut stdout, &mut stderr)
            .unwrap();
        (end, stdout, stderr)
    }

    fn message(data: &[u8]) -> Message {
        Message::Binary(Bytes::copy_from_slice(data))
    }

    #[test]
    fn pipes_carry_everything_both_ways_to_the_end() {
        const LEN: usize = 3 << 20;
        let (url, server) = server(|socket| {
            let mut got = 0;
            while got < LEN {
                let data = socket.read().unwrap().into_data();
                assert_eq!(data.first(), Some(&channel::STDIN));
                got += data.len() - 1;
                socket
                    .send(message(&[&[channel::STDOUT], &data[1..]].concat()))
                    .unwrap();
            }
            socket.send(message(b"\x02warned")).unwrap();
            socket.send(message(br#"{"status":"Success"}"#)).unwrap();
        });
        let (input, typing) = pipe().unwrap();
        let typist = std::thread::spawn(move || {
            // The escape is a byte like any other in a pipe.
            File::from(typing).write_all(&[0x1d; LEN]).unwrap();
        });
        let (end, stdout, stderr) = run(&url, &input, false);
        assert_eq!(
            (end, stdout.len(), &*stderr),
            (End::Stream(None), LEN, &b"warned"[..])
        );
        typist.join().unwrap();
        server.join().unwrap();
    }

    #[test]
    fn the_escape_leaves_after_what_was_typed_before() {
        let (url, server) = server(|socket| {
            // The size of the terminal that the test itself may have.
            let mut data = socket.read().unwrap().into_data();
            if data.first() == Some(&channel::RESIZE) {
                data = socket.read().unwrap().into_data();
            }
            assert_eq!(&*data, b"\x00exit\r");
            while socket.read().is_ok() {}
        });
        let (input, typing) = pipe().unwrap();
        File::from(typing).write_all(b"exit\r\x1dmore").unwrap();
        assert_eq!(run(&url, &input, true).0, End::Escaped);
        server.join().unwrap();
    }

    #[test]
    fn a_failure_has_the_runtimes_reason() {
        let (url, server) = server(|socket| {
            let status = br#"{"status":"Failure","message":"no such container"}"#;
            socket
                .send(message(&[&[channel::STATUS], &status[..]].concat()))
                .unwrap();
        });
        let (input, _typing) = pipe().unwrap();
        let (end, ..) = run(&url, &input, false);
        assert_eq!(end, End::Stream(Some("no such container".to_owned())));
        server.join().unwrap();
    }
}
