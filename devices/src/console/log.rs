//! What a guest printed: the last of it for error messages, each line for a debug log.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// How much is kept, in bytes: a kernel's panic with its backtrace and the boot before it.
pub const CAPACITY: usize = 64 << 10;
/// A line longer than this, in bytes, is reported in pieces: a guest may never end one.
pub const MAX_LINE_LEN: usize = 1 << 10;

/// Told of each line, without its end and without control characters, on the thread that prints;
/// it must not block.
pub type OnLine = Box<dyn Fn(&str) + Send + Sync>;

/// The end of a console's output.
pub struct ConsoleLog {
    kept: Mutex<Kept>,
    on_line: OnLine,
}

#[derive(Default)]
struct Kept {
    tail: VecDeque<u8>,
    line: Vec<u8>,
    /// How much of the tail is of the present boot.
    of_boot: usize,
}

impl ConsoleLog {
    /// An empty log that tells `on_line` of every line.
    #[must_use]
    pub fn new(on_line: OnLine) -> Arc<Self> {
        Arc::new(Self {
            kept: Mutex::default(),
            on_line,
        })
    }

    /// The last [`CAPACITY`] bytes of the output.
    #[must_use]
    pub fn tail(&self) -> Vec<u8> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.tail.iter().copied().collect()
    }

    /// What the tail has of the present boot.
    #[must_use]
    pub fn boot_tail(&self) -> Vec<u8> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let before = kept.tail.len() - kept.of_boot;
        kept.tail.iter().skip(before).copied().collect()
    }

    /// From here on it is another boot.
    pub fn begin_boot(&self) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.of_boot = 0;
    }

    /// Takes more output.
    pub fn put(&self, bytes: &[u8]) {
        for &byte in bytes {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let line = kept.put(byte);
            drop(kept);
            if let Some(line) = line {
                self.report(&line);
            }
        }
    }

    fn report(&self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let text: String = text
            .chars()
            .filter(|c| !c.is_control() || *c == '\t')
            .collect();
        (self.on_line)(&text);
    }
}

impl Kept {
    /// Takes a byte; the line that is complete with it.
    fn put(&mut self, byte: u8) -> Option<Vec<u8>> {
        if self.tail.len() == CAPACITY {
            self.tail.pop_front();
        }
        self.tail.push_back(byte);
        self.of_boot = self.tail.len().min(self.of_boot + 1);
        if byte != b'\n' {
            self.line.push(byte);
        }
        (byte == b'\n' || self.line.len() >= MAX_LINE_LEN).then(|| std::mem::take(&mut self.line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> (Arc<ConsoleLog>, Arc<Mutex<Vec<String>>>) {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&lines);
        let on_line = Box::new(move |line: &str| seen.lock().unwrap().push(line.to_owned()));
        (ConsoleLog::new(on_line), lines)
    }

    fn print(log: &Arc<ConsoleLog>, text: &[u8]) {
        log.put(text);
    }

    #[test]
    fn lines_are_reported_when_complete_and_without_control_characters() {
        let (log, lines) = log();
        print(&log, b"[0.0] \x1b[1mLinux\r\nlogin:\xff\n# ");
        assert_eq!(*lines.lock().unwrap(), ["[0.0] [1mLinux", "login:\u{fffd}"]);
        assert!(log.tail().ends_with(b"\n# "));
    }

    #[test]
    fn the_tail_and_an_endless_line_are_bounded() {
        let (log, lines) = log();
        print(&log, &vec![b'x'; CAPACITY]);
        print(&log, b"end");
        let tail = log.tail();
        assert_eq!(tail.len(), CAPACITY);
        assert!(tail.ends_with(b"xend"));
        assert_eq!(lines.lock().unwrap().len(), CAPACITY / MAX_LINE_LEN);
    }

    #[test]
    fn the_tail_of_a_boot_has_nothing_of_the_one_before() {
        let (log, _) = log();
        print(&log, b"first");
        assert_eq!(log.boot_tail(), b"first");
        log.begin_boot();
        assert_eq!(log.boot_tail(), b"");
        print(&log, b"second");
        assert_eq!(log.boot_tail(), b"second");
        assert_eq!(log.tail(), b"firstsecond");
        print(&log, &vec![b'x'; 2 * CAPACITY]);
        assert_eq!(log.boot_tail().len(), CAPACITY);
    }
}
