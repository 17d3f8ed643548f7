//! The host's end of stdout and stderr.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;
use tokio::net::unix::pipe;

use super::{StdioAddress, StdioError};

/// Takes a process's output.
pub(super) enum Output {
    /// A FIFO, opened for both directions: it survives a restart of its reader.
    Fifo(pipe::Sender),
    /// Any other file.
    File(File),
}

impl Output {
    /// Opens the host's end; None when the output goes nowhere.
    pub(super) fn open(address: &StdioAddress) -> Result<Option<Self>, StdioError> {
        let (path, append) = match address {
            StdioAddress::None => return Ok(None),
            StdioAddress::Path(path) => (path, false),
            StdioAddress::File(path) => (path, true),
        };
        let opened = if append { append_to(path) } else { open(path) };
        opened.map(Some).map_err(|source| StdioError::Open {
            path: path.clone(),
            source,
        })
    }
}

fn open(path: &Path) -> io::Result<Output> {
    if std::fs::metadata(path)?.file_type().is_fifo() {
        return Ok(Output::Fifo(
            pipe::OpenOptions::new()
                .read_write(true)
                .open_sender(path)?,
        ));
    }
    Ok(Output::File(OpenOptions::new().write(true).open(path)?))
}

fn append_to(path: &Path) -> io::Result<Output> {
    Ok(Output::File(
        OpenOptions::new().create(true).append(true).open(path)?,
    ))
}

impl AsyncWrite for Output {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Fifo(fifo) => Pin::new(fifo).poll_write(cx, data),
            // A plain file takes what it is given, without waiting for anybody.
            Self::File(file) => Poll::Ready(file.write(data)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
