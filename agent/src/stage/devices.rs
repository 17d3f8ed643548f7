//! /dev of a container: the nodes that every container has, those that its
//! specification adds, and the usual symbolic links.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;

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
/// What lies in the guest's /dev and differs in a container's.
const OWN_NODES: &[&str] = &[
    "/dev/console",
    "/dev/mqueue",
    "/dev/ptmx",
    "/dev/pts",
    "/dev/shm",
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
    let guests = if spec.linux.resources.allows_every_device() {
        guests_nodes().map_err(StageError::step("list the guest's devices"))?
    } else {
        Vec::new()
    };
    // In a user namespace no node can be made: the guest's are bound instead.
    let bind = spec.linux.has_own(NamespaceKind::User);
    for device in defaults
        .chain(spec.linux.devices.iter().cloned())
        .chain(guests)
    {
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

/// The guest's own nodes, in their folders, without what every container has of its own.
fn guests_nodes() -> io::Result<Vec<Device>> {
    let mut folders = vec![PathBuf::from("/dev")];
    let mut nodes = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let (path, metadata) = {
                let entry = entry?;
                (entry.path(), entry.metadata()?)
            };
            let Some(path) = path.to_str().filter(|path| !OWN_NODES.contains(path)) else {
                continue;
            };
            let kind = metadata.file_type();
            if kind.is_dir() {
                folders.push(path.into());
            } else if kind.is_char_device() || kind.is_block_device() {
                let number = metadata.rdev();
                nodes.push(Device {
                    kind: if kind.is_block_device() { "b" } else { "c" }.to_owned(),
                    path: path.to_owned(),
                    major: rustix::fs::major(number),
                    minor: rustix::fs::minor(number),
                    file_mode: Some(metadata.mode()),
                    uid: Some(metadata.uid()),
                    gid: Some(metadata.gid()),
                });
            }
        }
    }
    Ok(nodes)
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
