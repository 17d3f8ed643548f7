//! This process's descriptors as a directory: the way from a file we hold to its other openings.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, chmodat, openat};
use rustix::path::DecInt;

/// `/proc/self/fd`, opened once: workers may run where no `/proc` is mounted.
#[derive(Debug)]
pub(super) struct ProcFd(OwnedFd);

impl ProcFd {
    /// Opens the directory.
    ///
    /// # Errors
    /// Those of open(2), where `/proc` is not mounted.
    pub fn open() -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(openat(CWD, c"/proc/self/fd", flags, Mode::empty())?))
    }

    /// Opens the very file that `fd` is, whatever its name has become.
    ///
    /// # Errors
    /// Those of open(2); `ELOOP` for a symbolic link.
    pub fn reopen(&self, fd: impl AsFd, flags: OFlags) -> io::Result<File> {
        let name = DecInt::new(fd.as_fd().as_raw_fd());
        Ok(openat(&self.0, name, flags | OFlags::CLOEXEC, Mode::empty())?.into())
    }

    /// Sets the permissions of the file that `fd` is, which may be opened with `O_PATH`.
    ///
    /// # Errors
    /// Those of chmod(2).
    pub fn chmod(&self, fd: impl AsFd, mode: Mode) -> io::Result<()> {
        let name = DecInt::new(fd.as_fd().as_raw_fd());
        Ok(chmodat(&self.0, name, mode, AtFlags::empty())?)
    }
}
