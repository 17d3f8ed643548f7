//! One reader's share of the output.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::terminal::Shared;

/// What happens to output that a reader has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// The guest's device is busy until the reader has read: nothing is lost.
    Hold,
    /// The reader loses the oldest output it has not read; the guest notices nothing.
    DropOldest,
}

/// What a reader is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReaderConfig {
    /// How much unread output is kept, in bytes; at least one.
    pub capacity: usize,
    /// What happens beyond that.
    pub when_full: WhenFull,
}

/// Unread output.
pub(super) struct Ring {
    config: ReaderConfig,
    unread: VecDeque<u8>,
    waker: Option<Waker>,
    lost: u64,
}

impl Ring {
    pub(super) fn new(config: ReaderConfig) -> Self {
        Self {
            config,
            unread: VecDeque::new(),
            waker: None,
            lost: 0,
        }
    }

    /// How much may be pushed without a loss.
    pub(super) fn room(&self) -> usize {
        match self.config.when_full {
            WhenFull::Hold => self.config.capacity.saturating_sub(self.unread.len()),
            WhenFull::DropOldest => usize::MAX,
        }
    }

    /// Takes output. A guest that prints although its device is busy gets as much again before
    /// something is lost.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Option<Waker> {
        let limit = match self.config.when_full {
            WhenFull::Hold => self.config.capacity.saturating_mul(2),
            WhenFull::DropOldest => self.config.capacity,
        };
        self.unread.extend(bytes);
        let excess = self.unread.len().saturating_sub(limit.max(1));
        self.unread.drain(..excess);
        self.lost += excess as u64;
        self.waker.take()
    }

    pub(super) fn read(&mut self, to: &mut [u8]) -> usize {
        let count = to.len().min(self.unread.len());
        for (to, from) in to.iter_mut().zip(self.unread.drain(..count)) {
            *to = from;
        }
        count
    }

    pub(super) fn wait(&mut self, cx: &Context<'_>) {
        self.waker = Some(cx.waker().clone());
    }

    pub(super) fn take_waker(&mut self) -> Option<Waker> {
        self.waker.take()
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost
    }
}

/// Reads all output from the reader's making on. One task waits at a time. Dropping it lets go of
/// what it has not read.
pub struct ConsoleReader {
    pub(super) shared: Arc<Shared>,
    pub(super) id: u64,
}

impl ConsoleReader {
    /// Reads up to `to.len()` bytes of what is there, perhaps none.
    #[must_use]
    pub fn try_read(&self, to: &mut [u8]) -> usize {
        self.shared.read(self.id, to)
    }

    /// Reads up to `to.len()` bytes, at least one; zero means that the machine has ended and all
    /// is read.
    pub fn poll_read(&self, cx: &mut Context<'_>, to: &mut [u8]) -> Poll<usize> {
        self.shared.poll_read(self.id, cx, to)
    }

    /// How many bytes this reader has lost.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.lost(self.id)
    }
}

impl Drop for ConsoleReader {
    fn drop(&mut self) {
        self.shared.remove(self.id);
    }
}
