//! The container's file system tree: its root, the mounts of the specification,
//! /dev, what is hidden or read-only, and the move into it.

use std::os::fd::AsFd as _;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};

use super::mount_options::{Recursion, propagation, read_only};
use super::mounts::{attach_tree, clone_tree, make, make_read_only, mask};
use super::root::Root;
use super::{StageError, devices};
use crate::oci::Spec;
use crate::sys::mount::set_attributes;

/// Builds the tree in this process's new mount namespace; it is entered later.
///
/// # Errors
///
/// [`StageError`] with the step.
pub fn build(spec: &Spec) -> Result<Root, StageError> {
    // The agent's mounts are seen but never changed from here.
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(StageError::step("isolate mounts"))?;
    let path = spec.root.path.as_str();
    let place = Root::open(path).map_err(StageError::step(format!("root.path {path}")))?;
    let tree = clone_tree(path, Recursion::Recursive)
        .map_err(StageError::step(format!("clone root.path {path}")))?;
    attach_tree(tree.as_fd(), place.as_fd())
        .map_err(StageError::step(format!("mount root.path {path}")))?;
    let root = Root::new(tree);
    for mount in &spec.mounts {
        make(&root, mount)?;
    }
    let own_dev = !spec.mounts.iter().any(|mount| {
        mount.destination.trim_end_matches('/') == "/dev"
            && (mount.kind == "bind" || mount.options.iter().any(|option| option.ends_with("bind")))
    });
    if own_dev {
        devices::populate(&root, spec)?;
    }
    Ok(root)
}

/// Puts read-only and masked paths in force.
///
/// # Errors
///
/// [`StageError`] with the path.
pub fn restrict(root: &Root, spec: &Spec) -> Result<(), StageError> {
    for path in &spec.linux.readonly_paths {
        make_read_only(root, path)?;
    }
    if spec.linux.masked_paths.is_empty() {
        return Ok(());
    }
    // The guest's own, not what the image calls /dev/null.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty())
        .map_err(StageError::step("open /dev/null"))?;
    for path in &spec.linux.masked_paths {
        mask(root, path, null.as_fd())?;
    }
    Ok(())
}

/// Makes the tree this process's root and lets go of the guest's.
///
/// # Errors
///
/// [`StageError`] with the step.
pub fn enter(root: &Root, spec: &Spec) -> Result<(), StageError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = rustix::fs::open("/", flags, Mode::empty()).map_err(StageError::step("open /"))?;
    rustix::process::fchdir(root.as_fd()).map_err(StageError::step("enter the root"))?;
    rustix::process::pivot_root(".", ".").map_err(StageError::step("pivot_root"))?;
    rustix::process::fchdir(&old).map_err(StageError::step("return to the old root"))?;
    // Unmounting must not reach the guest's own mounts.
    mount_change(
        ".",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(StageError::step("isolate the old root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(StageError::step("unmount the old root"))?;
    rustix::process::chdir("/").map_err(StageError::step("chdir /"))?;
    let wanted = spec.linux.rootfs_propagation.as_str();
    if !wanted.is_empty() {
        let flags = propagation(wanted).ok_or_else(|| {
            StageError::Unsupported(format!("linux.rootfsPropagation {wanted} is unknown"))
        })?;
        mount_change("/", flags).map_err(StageError::step("set linux.rootfsPropagation"))?;
    }
    if spec.root.readonly {
        set_attributes(root.as_fd(), read_only(), false)
            .map_err(StageError::step("make the root read-only"))?;
    }
    Ok(())
}
