//! Making one mount of a container, with the descriptor-based mount calls: a
//! mount is made detached, given its attributes, and attached to a directory
//! that was resolved inside the container's root.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    move_mount, open_tree,
};

use super::StageError;
use super::mount_options::{MountOptions, Recursion, inert, read_only};
use super::root::{Missing, Root, is_directory};
use crate::oci::Mount;
use crate::sys::mount::{MountAttributes, set_attributes};

/// File systems a container may have mounted; others would have the guest's
/// kernel parse what the container brings.
const ALLOWED_TYPES: &[&str] = &[
    "proc",
    "sysfs",
    "tmpfs",
    "devpts",
    "mqueue",
    "cgroup",
    "cgroup2",
    "hugetlbfs",
];

/// Makes one mount of the specification.
///
/// # Errors
///
/// [`StageError`] naming the mount's destination.
pub fn make(root: &Root, mount: &Mount) -> Result<(), StageError> {
    let mut options = MountOptions::parse(&mount.options);
    if options.bind.is_none() && mount.kind == "bind" {
        options.bind = Some(Recursion::Single);
    }
    if let Some(recursion) = options.bind {
        return bind(root, mount, &options, recursion);
    }
    if !ALLOWED_TYPES.contains(&mount.kind.as_str()) {
        let Mount {
            destination, kind, ..
        } = mount;
        return Err(StageError::Unsupported(format!(
            "mounts[{destination}].type {kind} is not supported"
        )));
    }
    let target = resolve(root, mount, Missing::Directory)?;
    let tree = match create(mount, &options) {
        // Only the owner of a network namespace may mount a new sysfs; a
        // container in a user namespace gets the guest's instead.
        Err(error) if mount.kind == "sysfs" && error.kind() == io::ErrorKind::PermissionDenied => {
            clone_tree("/sys", Recursion::Recursive)
        }
        created => created,
    };
    let tree = tree.map_err(failed(mount, "create"))?;
    attach(&tree, &target, &options).map_err(failed(mount, "attach"))
}

fn bind(
    root: &Root,
    mount: &Mount,
    options: &MountOptions,
    recursion: Recursion,
) -> Result<(), StageError> {
    if let Some(parameter) = options.parameters.first() {
        let destination = &mount.destination;
        return Err(StageError::Unsupported(format!(
            "mounts[{destination}].options {parameter} is not an option of a bind mount"
        )));
    }
    let source = open_source(&mount.source).map_err(failed(mount, "find the source of"))?;
    let tree =
        clone_tree_of(source.as_fd(), recursion).map_err(failed(mount, "open the source of"))?;
    let directory = is_directory(tree.as_fd()).map_err(failed(mount, "examine the source of"))?;
    let missing = if directory {
        Missing::Directory
    } else {
        Missing::File
    };
    let target = resolve(root, mount, missing)?;
    attach(&tree, &target, options).map_err(failed(mount, "attach"))
}

/// Opens a bind mount's source, a path of the guest. Containers write to volumes, and a part of
/// one may be asked for by its path: a link in it must not lead elsewhere.
fn open_source(path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS;
    Ok(openat2(CWD, path, flags, Mode::empty(), resolve)?)
}

fn resolve(root: &Root, mount: &Mount, missing: Missing) -> Result<OwnedFd, StageError> {
    root.resolve(&mount.destination, missing)
        .map_err(failed(mount, "make the destination of"))
}

fn failed(mount: &Mount, what: &str) -> impl FnOnce(io::Error) -> StageError {
    let what = format!(
        "{what} mount {} ({} {})",
        mount.destination, mount.kind, mount.source
    );
    StageError::step(what)
}

/// A detached copy of the mount (or the part of it) at a guest path.
///
/// # Errors
///
/// What open_tree(2) said.
pub fn clone_tree(path: &str, recursion: Recursion) -> io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | depth(recursion);
    Ok(open_tree(CWD, path, flags)?)
}

/// A detached copy of the mount that a descriptor names.
///
/// # Errors
///
/// What open_tree(2) said.
pub fn clone_tree_of(fd: BorrowedFd<'_>, recursion: Recursion) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | depth(recursion);
    Ok(open_tree(fd, "", flags)?)
}

fn depth(recursion: Recursion) -> OpenTreeFlags {
    match recursion {
        Recursion::Single => OpenTreeFlags::empty(),
        Recursion::Recursive => OpenTreeFlags::AT_RECURSIVE,
    }
}

/// Attaches a detached mount on what `target` names.
///
/// # Errors
///
/// What move_mount(2) said.
pub fn attach_tree(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", target, "", flags)?)
}

/// A new, detached file system.
fn create(mount: &Mount, options: &MountOptions) -> io::Result<OwnedFd> {
    let kind = if mount.kind == "cgroup" {
        "cgroup2"
    } else {
        mount.kind.as_str()
    };
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    if !mount.source.is_empty() {
        fsconfig_set_string(context.as_fd(), "source", mount.source.as_str())?;
    }
    for parameter in &options.parameters {
        let set = match parameter.split_once('=') {
            Some((key, value)) => fsconfig_set_string(context.as_fd(), key, value),
            None => fsconfig_set_flag(context.as_fd(), parameter.as_str()),
        };
        set.map_err(|errno| io::Error::new(errno.kind(), format!("option {parameter}: {errno}")))?;
    }
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?)
}

fn attach(tree: &OwnedFd, target: &OwnedFd, options: &MountOptions) -> io::Result<()> {
    for (attributes, recursive) in [(options.attributes, false), (options.recursive, true)] {
        if attributes != MountAttributes::default() {
            set_attributes(tree.as_fd(), attributes, recursive)?;
        }
    }
    attach_tree(tree.as_fd(), target.as_fd())?;
    for flags in &options.propagation {
        propagate(tree.as_fd(), *flags)?;
    }
    Ok(())
}

/// Changes the propagation of the mount that `mount` names.
fn propagate(mount: BorrowedFd<'_>, flags: MountPropagationFlags) -> io::Result<()> {
    let recursive = flags.contains(MountPropagationFlags::REC);
    let propagation = u64::from((flags - MountPropagationFlags::REC).bits());
    set_attributes(
        mount,
        MountAttributes {
            propagation,
            ..Default::default()
        },
        recursive,
    )
}

/// Makes what lies at `path` in the container read-only, when it exists.
///
/// # Errors
///
/// [`StageError`] with the path.
pub fn make_read_only(root: &Root, path: &str) -> Result<(), StageError> {
    cover(root, path, |existing| {
        let tree = clone_tree_of(existing, Recursion::Recursive)?;
        set_attributes(tree.as_fd(), read_only(), false)?;
        Ok(tree)
    })
    .map_err(StageError::step(format!("make {path} read-only")))
}

/// Hides what lies at `path` in the container, when it exists: a directory
/// behind an empty one, anything else behind /dev/null.
///
/// # Errors
///
/// [`StageError`] with the path.
pub fn mask(root: &Root, path: &str, null: BorrowedFd<'_>) -> Result<(), StageError> {
    cover(root, path, |existing| {
        if !is_directory(existing)? {
            return clone_tree_of(null, Recursion::Single);
        }
        let empty = Mount {
            destination: path.to_owned(),
            kind: "tmpfs".to_owned(),
            source: "tmpfs".to_owned(),
            options: Vec::new(),
        };
        let tree = create(&empty, &MountOptions::default())?;
        set_attributes(tree.as_fd(), inert(), false)?;
        Ok(tree)
    })
    .map_err(StageError::step(format!("mask {path}")))
}

/// Attaches the mount that `make` returns over an existing path.
fn cover(
    root: &Root,
    path: &str,
    make: impl FnOnce(BorrowedFd<'_>) -> io::Result<OwnedFd>,
) -> io::Result<()> {
    let existing = match root.resolve(path, Missing::Fail) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            return Ok(());
        }
        existing => existing?,
    };
    let tree = make(existing.as_fd())?;
    attach_tree(tree.as_fd(), existing.as_fd())
}
