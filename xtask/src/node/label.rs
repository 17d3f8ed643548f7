//! The output of several nodes at the same time: whole lines, each with the name of where it is from.

use std::io::{self, Write};

/// Writes whole lines to `to`, each with a label before it. What has no end of line yet is held back until it has one, or until
/// this goes.
pub struct Labelled<W: Write> {
    label: &'static str,
    line: Vec<u8>,
    to: W,
}

impl<W: Write> Labelled<W> {
    /// Labels everything that is written to `to`.
    pub fn new(label: &'static str, to: W) -> Self {
        Self {
            label,
            line: Vec::new(),
            to,
        }
    }

    fn write_line(&mut self, end: &str) -> io::Result<()> {
        // One write a line: another node's line does not come between.
        let mut labelled = format!("{}: ", self.label).into_bytes();
        labelled.append(&mut self.line);
        labelled.extend_from_slice(end.as_bytes());
        self.to.write_all(&labelled)
    }
}

impl<W: Write> Write for Labelled<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.write_line("")?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl<W: Write> Drop for Labelled<W> {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            // Nobody is left to be told.
            let _ = self.write_line("\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_have_the_label() {
        let mut to = Vec::new();
        let mut labelled = Labelled::new("2.1", &mut to);
        labelled.write_all(b"test a ... ").unwrap();
        labelled.write_all(b"ok\ntest b ... ok\nlast").unwrap();
        drop(labelled);
        assert_eq!(to, b"2.1: test a ... ok\n2.1: test b ... ok\n2.1: last\n");
    }
}
