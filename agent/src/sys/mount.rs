//! mount_setattr(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct mount_attr` (linux/mount.h).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttributes {
    /// MOUNT_ATTR_* to set.
    pub set: u64,
    /// MOUNT_ATTR_* to clear.
    pub clear: u64,
    /// MS_PRIVATE, MS_SLAVE, MS_SHARED or MS_UNBINDABLE; 0 for no change.
    pub propagation: u64,
    /// User namespace of an id-mapped mount; unused.
    pub user_namespace_fd: u64,
}

/// Changes the attributes of the mount that `mount` (an O_PATH or open_tree
/// descriptor of its root) names, and of all below it when `recursive`.
///
/// # Errors
///
/// What mount_setattr(2) said.
pub fn set_attributes(
    mount: BorrowedFd<'_>,
    attributes: MountAttributes,
    recursive: bool,
) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: an empty C string, and a repr(C) struct whose size is passed along;
    // both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
