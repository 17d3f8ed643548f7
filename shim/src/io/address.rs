//! How containerd writes where a stream leads (containerd, `pkg/cio`): a FIFO's path, or a URL.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Where a stream leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StdioAddress {
    /// Nowhere.
    None,
    /// A FIFO, or any other file that is opened and not truncated.
    Path(PathBuf),
    /// A file that is appended to.
    File(PathBuf),
}

/// A stream that cannot be connected.
#[derive(Debug, Error)]
pub enum StdioError {
    /// A kind of stream that is not offered.
    #[error("stream {0:?}: only FIFOs and file:// are offered")]
    Scheme(String),
    /// The host's end cannot be opened.
    #[error("cannot open stream {path}")]
    Open {
        /// The stream's path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The guest's end cannot be reached.
    #[error("cannot connect a stream to the guest")]
    Guest(#[source] io::Error),
}

impl StdioAddress {
    /// Parses what containerd wrote.
    ///
    /// # Errors
    /// [`StdioError::Scheme`].
    pub fn parse(text: &str) -> Result<Self, StdioError> {
        match text.split_once("://") {
            None if text.is_empty() => Ok(Self::None),
            None => Ok(Self::Path(text.into())),
            Some(("fifo", path)) => Ok(Self::Path(path.into())),
            Some(("file", path)) => Ok(Self::File(path.into())),
            Some(_) => Err(StdioError::Scheme(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_urls_are_told_apart() {
        assert_eq!(StdioAddress::parse("").unwrap(), StdioAddress::None);
        assert_eq!(
            StdioAddress::parse("/run/f").unwrap(),
            StdioAddress::Path("/run/f".into())
        );
        assert_eq!(
            StdioAddress::parse("file:///log").unwrap(),
            StdioAddress::File("/log".into())
        );
        assert!(StdioAddress::parse("binary:///bin/logger").is_err());
    }
}
