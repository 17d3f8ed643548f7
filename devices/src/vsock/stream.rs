//! One connection as the host's tasks see it.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::connection::Connection;
use super::host::Shared;
use super::muxer::ConnectionId;

/// A byte stream to or from the guest. One task may wait for reading and one for writing;
/// behind an [`Arc`] they can be different ones.
///
/// Dropping it closes the connection after what was written has reached the guest. If received
/// data is left unread, the guest gets a reset instead, and what it has not taken yet is lost.
pub struct VsockStream {
    shared: Arc<Shared>,
    id: ConnectionId,
}

impl VsockStream {
    pub(super) fn new(shared: Arc<Shared>, id: ConnectionId) -> Self {
        Self { shared, id }
    }

    pub(super) fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|connection| connection.poll_connected(cx))
    }

    /// Reads up to `buffer.len()` bytes; zero means that the guest will send no more.
    ///
    /// # Errors
    /// `ConnectionReset`, after all data that was received, when the guest broke the
    /// connection off or its driver went away.
    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        self.poll(|connection| connection.poll_read(cx, buffer))
    }

    /// Takes over some of `data`, at least a byte, for the guest. It waits while
    /// [`super::SEND_BUFFER_LEN`] bytes are on their way.
    ///
    /// # Errors
    /// `BrokenPipe` after [`Self::poll_shutdown_write`] or when the guest receives no more,
    /// `ConnectionReset` when the connection was broken off.
    pub fn poll_write(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(|connection| connection.poll_write(cx, data))
    }

    /// Ends what is written: the guest's reader sees the end after the data before it.
    /// Always ready; reading goes on.
    ///
    /// # Errors
    /// None that a guest or a caller could bring about.
    pub fn poll_shutdown_write(&self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|connection| {
            connection.shutdown_write();
            Poll::Ready(Ok(()))
        })
    }

    fn poll<T>(
        &self,
        act: impl FnOnce(&mut Connection) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        self.shared.on(self.id, act)?
    }
}

impl Drop for VsockStream {
    fn drop(&mut self) {
        self.shared.as_host(|muxer| muxer.release(self.id));
    }
}
