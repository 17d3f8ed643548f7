//! The socket of a pod's server (containerd, `pkg/shim/util_unix.go`).

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use thiserror::Error;

const FOLDER: &str = "/run/containerd/s";

/// Why there is no socket.
#[derive(Debug, Error)]
#[error("cannot {action} {path}")]
pub struct SocketError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// A pod's socket.
#[derive(Debug)]
pub(super) enum Socket {
    /// It is new.
    Bound(UnixListener),
    /// A server listens on it.
    Served,
}

/// The socket's path for the pod `id` of a containerd at `address`.
pub fn socket_path(address: &str, namespace: &str, id: &str) -> PathBuf {
    let name = Path::new(address).join(namespace).join(id);
    let digest = Sha256::digest(name.as_os_str().as_encoded_bytes());
    Path::new(FOLDER).join(hex::encode(digest))
}

/// Whether a server listens at `path`.
pub(super) fn is_served(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}

/// Listens at `path`, which may be left over from a dead server.
pub(super) fn bind(path: &Path) -> Result<Socket, SocketError> {
    let failed = |action| {
        move |source| SocketError {
            action,
            path: path.to_owned(),
            source,
        }
    };
    if let Some(folder) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed("make the folder of"))?;
    }
    let listener = match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            if is_served(path) {
                return Ok(Socket::Served);
            }
            fs::remove_file(path).map_err(failed("remove"))?;
            UnixListener::bind(path)
        }
        other => other,
    };
    let listener = listener.map_err(failed("listen at"))?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed("restrict"))?;
    Ok(Socket::Bound(listener))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_follows_from_containerd_namespace_and_pod() {
        let path = socket_path("/run/containerd/containerd.sock", "k8s.io", "pod1");
        let text = path.to_str().unwrap();
        assert!(
            text.starts_with("/run/containerd/s/") && text.len() <= 106,
            "{text}"
        );
        assert_ne!(
            path,
            socket_path("/run/containerd/containerd.sock", "k8s.io", "pod2")
        );
    }

    #[test]
    fn a_socket_is_taken_over_only_from_the_dead() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let Socket::Bound(listener) = bind(&path).unwrap() else {
            panic!("not bound")
        };
        assert!(matches!(bind(&path).unwrap(), Socket::Served));
        drop(listener);
        assert!(matches!(bind(&path).unwrap(), Socket::Bound(_)));
    }
}
