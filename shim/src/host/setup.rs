//! What a server does to itself before it has threads.

use std::ffi::CStr;
use std::fs;
use std::io;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use thiserror::Error;

use crate::pod::cpu_set::CpuSet;

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
    /// The kernel does not tell where this process may run.
    #[error("cannot tell the CPUs of this process")]
    Cpus(#[source] io::Error),
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

/// The host's name, which a pod has that is given none.
pub fn host_name() -> String {
    // Without one the guest keeps its own, as a container of the host would.
    let name = nix::unistd::gethostname().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// What the kernel tells of this process (proc_pid_status(5)).
const STATUS: &str = "/proc/self/status";

/// The CPUs of the host that this process may use.
///
/// # Errors
/// [`SetupError::Cpus`].
pub fn allowed_cpus() -> Result<CpuSet, SetupError> {
    let text = fs::read_to_string(STATUS).map_err(SetupError::Cpus)?;
    let mut lines = text.lines();
    let list = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let invalid = || SetupError::Cpus(io::ErrorKind::InvalidData.into());
    list.and_then(|list| list.parse().ok()).ok_or_else(invalid)
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

/// The server's name, for `ps` and the like.
const PROCESS_NAME: &CStr = c"podvisor";
/// An allocation of this size, in bytes, is mapped by itself and given back when it is freed.
const MAP_THRESHOLD: libc::c_int = 64 << 10;

/// Names this process and makes its allocator thrifty: one heap for all threads, and what is free
/// at its end goes back to the host.
pub fn be_small() {
    // A name is for people only.
    let _ = nix::sys::prctl::set_name(PROCESS_NAME);
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 1),
        (libc::M_MMAP_THRESHOLD, MAP_THRESHOLD),
        (libc::M_TRIM_THRESHOLD, MAP_THRESHOLD),
    ] {
        // SAFETY: mallopt takes two numbers and is called before there are other threads; a
        // parameter it does not know changes nothing.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives what the allocator holds and nobody uses back to the host.
pub fn trim_heap() {
    // SAFETY: malloc_trim may be called from any thread at any time and touches free memory only.
    unsafe { libc::malloc_trim(0) };
}
