//! Tells what happens, and how long it took, on stderr: stdout belongs to the containers.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// How much is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    /// Failures only.
    Quiet,
    /// Phases and their times.
    Phases,
    /// A tour of the pod: also its virtual machine, its kernel, and what it leaves behind.
    Tour,
}

impl Detail {
    /// Phases for people, nothing for files.
    pub fn default_for_stderr() -> Self {
        if io::stderr().is_terminal() {
            Self::Phases
        } else {
            Self::Quiet
        }
    }
}

/// Writes lines that begin with the time since the command began.
#[derive(Debug)]
pub struct Narrator {
    detail: Detail,
    began: Instant,
}

impl Narrator {
    /// A narrator whose clock begins now.
    pub fn new(detail: Detail) -> Self {
        Self {
            detail,
            began: Instant::now(),
        }
    }

    /// Something that has happened.
    pub fn tell(&self, what: &str) {
        if self.detail >= Detail::Phases {
            self.write(&format!(
                "[{:>8.3} s] {what}",
                self.began.elapsed().as_secs_f64()
            ));
        }
    }

    /// Something that has happened and took some time.
    pub fn phase(&self, what: &str, took: Duration) {
        self.tell(&format!("{what:<44} {:>9.1} ms", took.as_secs_f64() * 1e3));
    }

    /// More about what was told last.
    pub fn note(&self, what: &str) {
        if self.detail >= Detail::Phases {
            self.write(&format!("{:13}{what}", ""));
        }
    }

    /// What is told in any case.
    pub fn warn(&self, what: &str) {
        self.write(&format!("podvisor: {what}"));
    }

    fn write(&self, line: &str) {
        // Nobody can be told that stderr is gone.
        let _ = writeln!(io::stderr().lock(), "{line}");
    }
}
