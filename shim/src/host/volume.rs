//! Opens volumes for export.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::pod::volume::Propagation;

/// `MOUNT_ATTR_SIZE_VER0` (linux/mount.h): `struct mount_attr` has not grown since.
const _: () = assert!(size_of::<libc::mount_attr>() == 32);

/// A descriptor of the volume at `path` (`O_PATH`). Without propagation it is a copy of the mounts
/// there, which none that comes later joins.
///
/// # Errors
/// What the host said.
pub(super) fn open_volume(path: &Path, propagation: Propagation) -> io::Result<OwnedFd> {
    if propagation == Propagation::FromHost {
        return Ok(open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?);
    }
    let copy = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, path, copy)?;
    make_private(&tree)?;
    Ok(tree)
}

/// Takes a copy out of its original's propagation.
fn make_private(tree: &OwnedFd) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: 0,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: an empty C string, and a structure whose size is passed along; the kernel reads
    // both before the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
