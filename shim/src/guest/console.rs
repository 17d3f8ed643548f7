//! A machine's console as tokio's streams.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use podvisor_devices::console::{ConsoleReader, Terminal};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What the guest prints, and what is typed to it.
pub(super) struct ConsoleStream {
    pub(super) reader: ConsoleReader,
    pub(super) terminal: Terminal,
}

impl AsyncRead for ConsoleStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let len = ready!(self.reader.poll_read(cx, buf.initialize_unfilled()));
        buf.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ConsoleStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.terminal.poll_input(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was typed waits for the guest.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A terminal has no end of input.
        Poll::Ready(Ok(()))
    }
}
