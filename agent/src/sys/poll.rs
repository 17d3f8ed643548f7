//! Descriptors under tokio's poll loop.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A non-blocking descriptor whose readiness can be awaited.
pub type PolledFd = AsyncFd<OwnedFd>;

/// Registers a non-blocking descriptor. Needs a tokio runtime.
///
/// # Errors
///
/// What epoll_ctl(2) said.
pub fn register(fd: OwnedFd, interest: Interest) -> io::Result<PolledFd> {
    // SAFETY: an OwnedFd names one open descriptor for as long as it exists, and
    // nothing takes it out of the AsyncFd.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
