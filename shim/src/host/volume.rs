//! Opens volumes for export.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::VolumeRequest;
use super::owners::{change_owners, make_private};
use crate::pod::volume::Propagation;

/// A descriptor of a volume (`O_PATH`). Without propagation it is a copy of the mounts
/// there, which none that comes later joins.
///
/// # Errors
/// What the host said.
pub(super) fn open_volume(request: &VolumeRequest) -> io::Result<OwnedFd> {
    if request.propagation == Propagation::FromHost {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        return Ok(open(&request.path, flags, Mode::empty())?);
    }
    let copy = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, &request.path, copy)?;
    make_private(tree.as_fd())?;
    if let Some(owners) = &request.owners {
        change_owners(tree.as_fd(), owners)?;
    }
    Ok(tree)
}
