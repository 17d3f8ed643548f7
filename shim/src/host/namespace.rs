//! Work inside another network namespace, on a thread that lives no longer than the work.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use thiserror::Error;

/// Why a namespace cannot be worked in.
#[derive(Debug, Error)]
pub enum NamespaceError {
    /// The path does not open.
    #[error("cannot open {path}")]
    Open {
        /// The namespace's path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The thread cannot enter.
    #[error("cannot enter {path}")]
    Enter {
        /// The namespace's path.
        path: PathBuf,
        /// What the host said.
        source: nix::Error,
    },
    /// The thread does not start or ended by a panic.
    #[error("the thread for the namespace failed")]
    Thread,
}

/// Whether `path` still is a namespace: once it is unmounted, an empty file is left for a while.
pub(super) fn exists(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|stat| stat.filesystem_type().0 == libc::NSFS_MAGIC)
}

/// Runs `work` on a thread inside the network namespace at `path`.
///
/// # Errors
/// [`NamespaceError`] when `work` was not run.
pub(super) fn within<T: Send>(
    path: &Path,
    work: impl FnOnce() -> T + Send,
) -> Result<T, NamespaceError> {
    let open = |source| NamespaceError::Open {
        path: path.to_owned(),
        source,
    };
    let namespace = File::open(path).map_err(open)?;
    let enter = |source| NamespaceError::Enter {
        path: path.to_owned(),
        source,
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(enter)?;
                Ok(work())
            });
        thread
            .map_err(|_| NamespaceError::Thread)?
            .join()
            .map_err(|_| NamespaceError::Thread)?
    })
}
