//! The init of the pid namespace that containers of a pod share: it does
//! nothing but reap. Containers thereby never share the agent's namespace.

use std::process::ExitCode;

use rustix::process::{WaitOptions, wait};

/// Reaps children for ever.
#[must_use]
pub fn run() -> ExitCode {
    loop {
        // With children this blocks until one ends. Without, wait for one to be
        // re-parented here: a signal tells of its end.
        if wait(WaitOptions::empty()).is_err() {
            pause();
        }
    }
}

/// Sleeps until SIGCHLD arrives.
fn pause() {
    // SAFETY: a sigset_t of zeros is the empty set.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a live, initialised set.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) };
    // SIGCHLD is blocked since the agent, so one that came before is not lost.
    // SAFETY: as above; the information is not asked for.
    unsafe { libc::sigwaitinfo(&raw const set, std::ptr::null_mut()) };
}
