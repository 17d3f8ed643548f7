//! Signals: sending any number through a pidfd, receiving SIGCHLD through a
//! descriptor, and giving a container the dispositions it expects.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// SIGKILL.
pub const KILL: u32 = 9;

/// Sends `signal` to the process of a pidfd.
///
/// # Errors
///
/// ESRCH when it has ended, EINVAL for a number that is no signal.
pub fn send(process: BorrowedFd<'_>, signal: u32) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo makes the kernel fill in its own.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            signal,
            no_info,
            0_u32,
        )
    };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Kills the process of a pidfd; one that has ended is killed already.
///
/// # Errors
///
/// What pidfd_send_signal(2) said.
pub fn kill(process: BorrowedFd<'_>) -> io::Result<()> {
    match send(process, KILL) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        sent => sent,
    }
}

/// Sends `signal` to a pid.
///
/// # Errors
///
/// As [`send`].
pub fn send_to_pid(pid: u32, signal: u32) -> io::Result<()> {
    // SAFETY: plain system call on integers.
    let result = unsafe { libc::syscall(libc::SYS_kill, pid, signal) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sends `signal` to the process group that `leader` leads.
///
/// # Errors
///
/// As [`send`].
pub fn send_to_group(leader: u32, signal: u32) -> io::Result<()> {
    let group = -i64::from(leader);
    // SAFETY: plain system call on integers.
    let result = unsafe { libc::syscall(libc::SYS_kill, group, signal) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Blocks SIGCHLD and returns a non-blocking descriptor that becomes readable
/// when a child changed state (signalfd(2)).
///
/// # Errors
///
/// What the kernel said.
pub fn child_descriptor() -> io::Result<OwnedFd> {
    // SAFETY: a sigset_t of zeros is a valid argument of sigemptyset's successors.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a live, initialised set.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) };
    // SAFETY: as above; the old set is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    // SAFETY: as above.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Undoes what the agent and Rust's runtime did to signals: nothing blocked,
/// SIGPIPE deadly again.
pub fn restore_defaults() {
    // SAFETY: a sigset_t of zeros is the empty set.
    let empty: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: a live, initialised set; the old one is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut()) };
    // SAFETY: the default disposition runs no code of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}
