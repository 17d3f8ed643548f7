//! The host's end of stdin.

use std::io;
use std::path::Path;

use tokio::net::unix::pipe;

use super::{StdioAddress, StdioError};

/// A FIFO to read stdin from.
pub(super) struct Input {
    pub(super) receiver: pipe::Receiver,
    /// Our own writing end: without it the FIFO would be at its end before containerd opened it,
    /// and whenever containerd restarts. Dropped to let the end come.
    pub(super) held_open: pipe::Sender,
}

impl Input {
    /// Opens the host's end; None when there is no stdin.
    pub(super) fn open(address: &StdioAddress) -> Result<Option<Self>, StdioError> {
        let (StdioAddress::Path(path) | StdioAddress::File(path)) = address else {
            return Ok(None);
        };
        open(path).map(Some).map_err(|source| StdioError::Open {
            path: path.clone(),
            source,
        })
    }
}

fn open(path: &Path) -> io::Result<Input> {
    let receiver = pipe::OpenOptions::new().open_receiver(path)?;
    let held_open = pipe::OpenOptions::new().open_sender(path)?;
    Ok(Input {
        receiver,
        held_open,
    })
}
