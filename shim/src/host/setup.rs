//! What a server does to itself before it has threads.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use thiserror::Error;

/// Why a server cannot set itself up.
#[derive(Debug, Error)]
pub enum SetupError {
    /// No mount namespace.
    #[error("cannot make a mount namespace")]
    Namespace(#[source] Errno),
    /// Mounts stay shared.
    #[error("cannot make mounts private")]
    Propagation(#[source] Errno),
    /// The OOM score stays.
    #[error("cannot set the OOM score")]
    OomScore(#[source] io::Error),
}

/// Gives this process mounts of its own: new ones of the host appear, own ones do not leave. Must
/// be called before there are threads.
///
/// # Errors
/// [`SetupError`].
pub fn private_mounts() -> Result<(), SetupError> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(SetupError::Namespace)?;
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, slave, None::<&str>).map_err(SetupError::Propagation)
}

/// Sets how likely the host's OOM killer takes this process, -1000 to 1000.
///
/// # Errors
/// [`SetupError::OomScore`].
pub fn set_oom_score(score: i64) -> Result<(), SetupError> {
    fs::write(
        "/proc/self/oom_score_adj",
        score.clamp(-1000, 1000).to_string(),
    )
    .map_err(SetupError::OomScore)
}
