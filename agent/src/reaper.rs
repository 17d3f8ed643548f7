//! The one place that waits for children: processes of containers, and orphans
//! that the kernel gives to PID 1.

use std::io;
use std::os::fd::AsFd as _;

use rustix::process::{WaitOptions, wait};
use tokio::io::Interest;

use crate::sys::poll::{self, PolledFd};
use crate::sys::signal::child_descriptor;

/// Added to the number of the signal that ended a process, as shells do.
const SIGNALLED: u32 = 128;

/// An ended child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its pid in the agent's namespace.
    pub pid: u32,
    /// Exit status, or 128 and the signal.
    pub status: u32,
}

/// Hears of ended children.
#[derive(Debug)]
pub struct Reaper {
    signals: PolledFd,
}

impl Reaper {
    /// Begins to listen. Needs a tokio runtime, before the first child.
    ///
    /// # Errors
    ///
    /// What signalfd(2) said.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            signals: poll::register(child_descriptor()?, Interest::READABLE)?,
        })
    }

    /// Hands every ended child to `reaped`, for ever.
    ///
    /// # Errors
    ///
    /// What the kernel said about the descriptor.
    pub async fn run(&self, reaped: impl Fn(Ended)) -> io::Result<()> {
        loop {
            while let Some(ended) = next_ended() {
                reaped(ended);
            }
            let mut guard = self.signals.readable().await?;
            // One signal stands for any number of children.
            let mut information = [0_u8; size_of::<libc::signalfd_siginfo>()];
            let read =
                guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref().as_fd(), &mut information)?));
            if let Ok(result) = read {
                result?;
            }
        }
    }
}

fn next_ended() -> Option<Ended> {
    loop {
        // None, or an error, means that no child has ended.
        let (pid, status) = wait(WaitOptions::NOHANG).ok()??;
        let pid = pid.as_raw_nonzero().get().unsigned_abs();
        if let Some(code) = status.exit_status() {
            return Some(Ended {
                pid,
                status: code.unsigned_abs(),
            });
        }
        if let Some(signal) = status.terminating_signal() {
            return Some(Ended {
                pid,
                status: SIGNALLED + signal.unsigned_abs(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::zombie_processes, reason = "the reaper under test waits")]
    fn statuses_are_told_as_shells_tell_them() {
        for (script, expected) in [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137)] {
            let child = std::process::Command::new("sh")
                .args(["-c", script])
                .spawn()
                .unwrap();
            let pid = child.id();
            let ended = loop {
                match next_ended() {
                    Some(ended) if ended.pid == pid => break ended,
                    _ => std::thread::sleep(std::time::Duration::from_millis(1)),
                }
            };
            assert_eq!(ended.status, expected, "{script}");
        }
    }
}
