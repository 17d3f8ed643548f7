//! Reaches a container runtime over its Unix socket.

use std::io;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// Why the runtime cannot be reached.
#[derive(Debug, Error)]
#[error("no container runtime answers on {}", path.display())]
pub struct ConnectError {
    path: PathBuf,
    source: tonic::transport::Error,
}

/// Connects to the container runtime that listens on the Unix socket `path`.
///
/// # Errors
///
/// When nothing listens there, or the caller may not connect.
pub async fn connect(path: impl AsRef<Path>) -> Result<Channel, ConnectError> {
    let path = path.as_ref().to_owned();
    let socket = path.clone();
    let connector = service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    // The address only fills the :authority header.
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .map_err(|source| ConnectError { path, source })
}
