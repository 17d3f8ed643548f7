//! A process's standard streams: on one side what containerd names, on the other connections to
//! the guest.

mod address;
mod console;
mod copy;
mod input;
mod output;

pub use address::{StdioAddress, StdioError};
pub use console::{ConsoleEnds, Transcript};
pub use copy::{NearEnds, Streams, attach, attach_here, copy};

/// Where containerd wants a process's streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stdio {
    /// Whether stdin and stdout are a terminal; then there is no stderr.
    pub terminal: bool,
    /// Where stdin comes from; empty when there is none.
    pub stdin: String,
    /// Where stdout goes; empty when nowhere.
    pub stdout: String,
    /// Where stderr goes; empty when nowhere.
    pub stderr: String,
}
