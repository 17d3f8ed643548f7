//! This process's terminal and signals.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal of stdin, every byte of which is the console's while this is.
#[derive(Debug)]
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Takes the terminal.
    ///
    /// # Errors
    /// What the host said.
    pub fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that is gone needs no settings.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.before);
    }
}

/// Columns and rows of stdin's terminal.
pub fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdin()).ok()?;
    Some((size.ws_col, size.ws_row)).filter(|size| *size != (0, 0))
}

/// A signal that means something here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The terminal has another size.
    Resized,
    /// The process is to end.
    End(i32),
}

/// Signals as something to wait for beside the streams; they do nothing else while this is.
#[derive(Debug)]
pub struct Signals {
    descriptor: SignalFd,
    before: SigSet,
}

impl Signals {
    /// Takes the signals that a console knows what to do with.
    ///
    /// # Errors
    /// What the host said.
    pub fn take() -> io::Result<Self> {
        let taken = [
            Signal::SIGWINCH,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGINT,
        ];
        let taken: SigSet = taken.into_iter().collect();
        let mut before = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&taken), Some(&mut before))?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let descriptor = SignalFd::with_flags(&taken, flags)?;
        Ok(Self { descriptor, before })
    }

    /// The next signal that has come.
    ///
    /// # Errors
    /// What the host said.
    pub fn next(&self) -> io::Result<Option<Taken>> {
        let signal = match self.descriptor.read_signal() {
            Ok(signal) => signal,
            Err(Errno::EINTR) => None,
            Err(error) => return Err(error.into()),
        };
        let number = signal.and_then(|signal| i32::try_from(signal.ssi_signo).ok());
        Ok(number.map(|number| match number {
            number if number == Signal::SIGWINCH as i32 => Taken::Resized,
            number => Taken::End(number),
        }))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // The mask was one before.
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None);
    }
}
