//! /dev of a container: the nodes that every container has, those that its
//! specification adds, and the usual symbolic links.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::StageError;
use super::mount_options::Recursion;
use super::mounts::{attach_tree, clone_tree};
use super::root::{Missing, Root};
use crate::oci::{Device, NamespaceKind, Spec};

/// Nodes that every container has (config-linux.md, "Default Devices"): name, major and minor number.
const DEFAULT_NODES: &[(&str, u32, u32)] = &[
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
/// Symbolic links that every container has, and where they lead.
const DEFAULT_LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Fills /dev.
///
/// # Errors
///
/// [`StageError`] with the node.
pub fn populate(root: &Root, spec: &Spec) -> Result<(), StageError> {
    let defaults = DEFAULT_NODES.iter().map(|(name, major, minor)| Device {
        kind: "c".to_owned(),
        path: format!("/dev/{name}"),
        major: *major,
        minor: *minor,
        file_mode: None,
        uid: None,
        gid: None,
    });
    // In a user namespace no node can be made: the guest's are bound instead.
    let bind = spec.linux.has_own(NamespaceKind::User);
    for device in defaults.chain(spec.linux.devices.iter().cloned()) {
        let made = if bind {
            bind_node(root, &device)
        } else {
            make_node(root, &device)
        };
        made.map_err(StageError::step(format!("make device {}", device.path)))?;
    }
    for (name, target) in DEFAULT_LINKS {
        make_link(root, name, target)
            .map_err(StageError::step(format!("make link /dev/{name}")))?;
    }
    Ok(())
}

fn make_node(root: &Root, device: &Device) -> io::Result<()> {
    let kind = match device.kind.as_str() {
        "c" | "u" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "type is none of c, u, b, p",
            ));
        }
    };
    let (directory, name) = root.resolve_parent(&device.path)?;
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    let number = rustix::fs::makedev(device.major, device.minor);
    match rustix::fs::mknodat(&directory, &name, kind, mode, number) {
        // The image or an earlier entry brought it; runc leaves it as it is.
        Err(Errno::EXIST) => return Ok(()),
        made => made?,
    }
    // mknod's mode is cut by the umask.
    rustix::fs::chmodat(&directory, &name, mode, AtFlags::empty())?;
    let (owner, group) = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
    if (owner, group) != (0, 0) {
        let (owner, group) = (Uid::from_raw(owner), Gid::from_raw(group));
        rustix::fs::chownat(
            &directory,
            &name,
            Some(owner),
            Some(group),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    Ok(())
}

fn bind_node(root: &Root, device: &Device) -> io::Result<()> {
    let tree = clone_tree(&device.path, Recursion::Single)?;
    let target: OwnedFd = root.resolve(&device.path, Missing::File)?;
    attach_tree(tree.as_fd(), target.as_fd())
}

fn make_link(root: &Root, name: &str, target: &str) -> io::Result<()> {
    let (directory, name) = root.resolve_parent(&format!("/dev/{name}"))?;
    match rustix::fs::symlinkat(target, &directory, &name) {
        Err(Errno::EXIST) => replace_link(&directory, &name, target),
        made => Ok(made?),
    }
}

/// A `ptmx` node of the image would open the guest's terminals.
fn replace_link(directory: &OwnedFd, name: &OsStr, target: &str) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let existing = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&existing)?.st_mode);
    if kind != FileType::CharacterDevice {
        return Ok(());
    }
    rustix::fs::unlinkat(directory, name, AtFlags::empty())?;
    Ok(rustix::fs::symlinkat(target, directory, name)?)
}
