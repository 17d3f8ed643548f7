//! System calls on files that have no safe binding elsewhere.

use std::fs::File;
use std::io;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

use fuse_backend_rs::abi::fuse_abi::statvfs64;

/// The file system that an open file is on; one opened with `O_PATH` will do.
///
/// # Errors
/// Those of fstatvfs(3).
pub(super) fn file_system_statistics(fd: impl AsFd) -> io::Result<statvfs64> {
    let mut statistics = MaybeUninit::uninit();
    // SAFETY: the pointer is to room for the structure, which outlives the call.
    let result = unsafe { libc::fstatvfs64(fd.as_fd().as_raw_fd(), statistics.as_mut_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded and so filled it.
    Ok(unsafe { statistics.assume_init() })
}

/// Closes a descriptor and says what dropping it would hide: that earlier writes failed.
///
/// # Errors
/// Those of close(2); the descriptor is closed all the same.
pub(super) fn close(fd: OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor was ours and nobody else's, and is given up here.
    if unsafe { libc::close(fd.into_raw_fd()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The same open file as a value of its own, because reads into guest memory are defined on
/// `&mut File` and files are shared by threads. It must not outlive `file`; what it does not is
/// the closure.
pub(super) fn with_shared<T>(file: &File, work: impl FnOnce(&mut File) -> T) -> T {
    // SAFETY: the descriptor is open as long as `file` is borrowed, and ManuallyDrop leaves the
    // closing to its owner.
    let mut shared = ManuallyDrop::new(unsafe { File::from_raw_fd(file.as_raw_fd()) });
    work(&mut shared)
}
