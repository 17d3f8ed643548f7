//! Follows a container's log file (CRI: `TIME STREAM P|F TEXT`, one entry a line) and prints it.

use std::cell::Cell;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use tokio::fs::File;
use tokio::io::AsyncReadExt;

/// How long to wait for more.
const POLL: Duration = Duration::from_millis(50);
/// Parts of a line beyond this are printed before their line has ended.
const LINE_LEN_MAX: usize = 64 * 1024;

/// Where lines of one container go.
#[derive(Clone, Debug)]
pub struct LinePrinter {
    /// Written before every line; empty for none.
    pub prefix: String,
}

impl LinePrinter {
    fn print(&self, stream: Stream, text: &[u8]) -> io::Result<()> {
        let mut line = Vec::with_capacity(self.prefix.len() + text.len() + 1);
        line.extend_from_slice(self.prefix.as_bytes());
        line.extend_from_slice(text);
        line.push(b'\n');
        match stream {
            Stream::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(&line)?;
                out.flush()
            }
            Stream::Stderr => io::stderr().lock().write_all(&line),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Stdout,
    Stderr,
}

/// Prints what comes into `file` until `ended` is set and everything before that is printed.
pub async fn follow(file: &Path, printer: &LinePrinter, ended: &Cell<bool>) -> io::Result<()> {
    let mut log: Option<File> = None;
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 32 * 1024];
    loop {
        // Read before the look at the file: what came before the end is seen after it.
        let last_round = ended.get();
        if log.is_none() {
            log = match File::open(file).await {
                Ok(log) => Some(log),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
        }
        if let Some(log) = &mut log {
            loop {
                let len = log.read(&mut buffer).await?;
                if len == 0 {
                    break;
                }
                let mut result = Ok(());
                decoder.take(
                    buffer.get(..len).unwrap_or_default(),
                    &mut |stream, text| {
                        if result.is_ok() {
                            result = printer.print(stream, text);
                        }
                    },
                );
                result?;
            }
        }
        if last_round {
            let mut result = Ok(());
            decoder.finish(&mut |stream, text| result = printer.print(stream, text));
            return result;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Hands out the lines of a whole log file, whatever stream they came from.
pub fn lines(log: &[u8], each: &mut dyn FnMut(&[u8])) {
    let mut decoder = Decoder::default();
    let mut print = |_: Stream, line: &[u8]| each(line);
    decoder.take(log, &mut print);
    decoder.finish(&mut print);
}

/// Puts entries and lines together from pieces of a log file.
#[derive(Debug, Default)]
struct Decoder {
    /// An entry whose end has not come.
    entry: Vec<u8>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Decoder {
    fn take(&mut self, mut bytes: &[u8], print: &mut dyn FnMut(Stream, &[u8])) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (head, rest) = bytes.split_at(end);
            self.entry.extend_from_slice(head);
            let entry = std::mem::take(&mut self.entry);
            self.entry(&entry, print);
            bytes = rest.get(1..).unwrap_or_default();
        }
        self.entry.extend_from_slice(bytes);
    }

    /// An entry that is none is printed as it is, to stderr.
    fn entry(&mut self, entry: &[u8], print: &mut dyn FnMut(Stream, &[u8])) {
        let mut fields = entry.splitn(4, |byte| *byte == b' ');
        let (_time, stream, tag, text) =
            (fields.next(), fields.next(), fields.next(), fields.next());
        let (stream, line) = match stream {
            Some(b"stdout") => (Stream::Stdout, &mut self.stdout),
            Some(b"stderr") => (Stream::Stderr, &mut self.stderr),
            _ => return print(Stream::Stderr, entry),
        };
        line.extend_from_slice(text.unwrap_or_default());
        if tag != Some(b"P") || line.len() >= LINE_LEN_MAX {
            print(stream, line);
            line.clear();
        }
    }

    fn finish(&mut self, print: &mut dyn FnMut(Stream, &[u8])) {
        for (stream, line) in [
            (Stream::Stdout, &self.stdout),
            (Stream::Stderr, &self.stderr),
        ] {
            if !line.is_empty() {
                print(stream, line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is printed of `log`, given in pieces of `size` bytes.
    fn printed(log: &[u8], size: usize) -> Vec<(Stream, String)> {
        let mut lines = Vec::new();
        let mut decoder = Decoder::default();
        let mut print = |stream, text: &[u8]| {
            lines.push((stream, String::from_utf8_lossy(text).into_owned()));
        };
        for piece in log.chunks(size) {
            decoder.take(piece, &mut print);
        }
        decoder.finish(&mut print);
        lines
    }

    const LOG: &str = "t stdout F one\nt stderr F two  words\nt stdout P thr\nt stderr F x\n\
                       t stdout F ee\nt stdout F \nt stdout P open\n";

    proptest! {
        #[test]
        fn lines_are_whole_however_the_file_is_read(size in 1_usize..200) {
            use Stream::{Stderr, Stdout};
            let expected = [
                (Stdout, "one"), (Stderr, "two  words"), (Stderr, "x"), (Stdout, "three"),
                (Stdout, ""), (Stdout, "open"),
            ];
            let expected = expected.map(|(stream, text)| (stream, text.to_owned()));
            prop_assert_eq!(printed(LOG.as_bytes(), size), expected);
        }

        #[test]
        fn no_file_panics(log in prop::collection::vec(any::<u8>(), 0..300)) {
            printed(&log, 7);
        }
    }

    #[test]
    fn a_line_without_end_is_printed_in_parts() {
        let part = format!("t stdout P {}\n", "x".repeat(LINE_LEN_MAX));
        assert_eq!(printed(part.repeat(3).as_bytes(), 4096).len(), 3);
    }

    #[tokio::test]
    async fn a_file_is_followed_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("0.log");
        let ended = Cell::new(false);
        let printer = LinePrinter {
            prefix: String::new(),
        };
        let write = async {
            tokio::time::sleep(POLL * 2).await;
            std::fs::write(&file, "t stdout F hello\n").unwrap();
            ended.set(true);
        };
        let (result, ()) = tokio::join!(follow(&file, &printer, &ended), write);
        result.unwrap();
    }
}
