//! Ports of the in-process console device as tokio's streams.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use podvisor_devices::virtio::ConsolePort;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A port. Reading and writing fail with `NotConnected` while no program in the guest has it open.
pub struct GuestPort(pub ConsolePort);

impl AsyncRead for GuestPort {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let len = ready!(self.0.poll_read(cx, buf.initialize_unfilled()))?;
        buf.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for GuestPort {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was written is on its way.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A port has no end: the next program opens it again.
        Poll::Ready(Ok(()))
    }
}
