//! What a volume's path leads to: whose it is, and what of it a guest can be given.
//!
//! The kubelet's folders tell: an emptyDir lies in a folder `kubernetes.io~empty-dir` (kubernetes,
//! `pkg/volume/emptydir`), with a file system of its own there when its medium is memory or huge
//! pages. A `subPath` arrives as a bind mount of a part of it, so that the way back leads through
//! the mount table.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use nix::sys::statvfs::statvfs;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use serde::{Deserialize, Serialize};

use super::mount_table::{MountTable, TableEntry};
use crate::pod::volume::part_of;

/// The folder of a pod's emptyDirs.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// What lies at a volume's path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeOrigin {
    /// A part of an emptyDir on disk, which nobody but the pod changes.
    EmptyDir {
        /// The emptyDir.
        folder: PathBuf,
        /// The part, relative to it; empty for all of it.
        below: PathBuf,
    },
    /// A part of an emptyDir that is a file system in memory.
    Memory(MemoryOrigin),
    /// A folder or file that others may change as well.
    Shared {
        /// Whether there are mounts below it.
        has_mounts: bool,
    },
    /// A device.
    Device {
        /// Whether it is a block device; a character device otherwise.
        block: bool,
        /// Its major number.
        major: u64,
        /// Its minor number.
        minor: u64,
    },
    /// A unix socket.
    Socket,
    /// A named pipe.
    Pipe,
}

/// An emptyDir that is a file system in memory, and a part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryOrigin {
    /// The device of its file system, which nothing else on the host has.
    pub device: String,
    /// Its size in bytes; None when it has no limit.
    pub size_bytes: Option<u64>,
    /// The size of its pages in bytes, when those are huge.
    pub huge_page_bytes: Option<u64>,
    /// Owner and mode of its root.
    pub root: Ownership,
    /// The part, relative to the root; empty for all of it.
    pub below: PathBuf,
    /// Owner and mode of that part.
    pub part: Ownership,
}

/// Owner and mode of a folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// Permission bits.
    pub mode: u32,
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

impl From<&Metadata> for Ownership {
    fn from(metadata: &Metadata) -> Self {
        Self {
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
        }
    }
}

/// Looks at `path`, through links.
///
/// # Errors
/// When it is not there, or the host does not tell.
pub(super) fn of(path: &Path) -> io::Result<VolumeOrigin> {
    let metadata = fs::metadata(path)?;
    let kind = metadata.file_type();
    if kind.is_socket() {
        return Ok(VolumeOrigin::Socket);
    }
    if kind.is_fifo() {
        return Ok(VolumeOrigin::Pipe);
    }
    if kind.is_block_device() || kind.is_char_device() {
        return Ok(VolumeOrigin::Device {
            block: kind.is_block_device(),
            major: major(metadata.rdev()),
            minor: minor(metadata.rdev()),
        });
    }
    let path = fs::canonicalize(path)?;
    let table = MountTable::read()?;
    let shared = VolumeOrigin::Shared {
        has_mounts: table.has_below(&path),
    };
    let id = statx(CWD, &path, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id;
    let inside = table
        .get(id)
        .and_then(|mount| Some((mount, mount.path_inside(&path)?)));
    let Some((mount, inside)) = inside else {
        return Ok(shared);
    };
    if let Some(folder) = memory_root(&table, mount) {
        return memory(mount, folder, &inside, &metadata);
    }
    Ok(on_disk(&table, mount, &inside, &metadata).unwrap_or(shared))
}

/// Where the root of a file system in memory is an emptyDir's, if it is.
fn memory_root<'t>(table: &'t MountTable, mount: &'t TableEntry) -> Option<&'t Path> {
    if !matches!(mount.kind.as_str(), "tmpfs" | "hugetlbfs") {
        return None;
    }
    let mut mounts = table.of_device(&mount.device);
    let root = mounts.find(|entry| {
        let whole = entry.root == Path::new("/");
        let split = split(&entry.point);
        whole && split.is_some_and(|(_, below)| below.as_os_str().is_empty())
    })?;
    Some(&root.point)
}

fn memory(
    mount: &TableEntry,
    folder: &Path,
    inside: &Path,
    part: &Metadata,
) -> io::Result<VolumeOrigin> {
    let statistics = statvfs(folder)?;
    let page = statistics.block_size();
    // A hugetlbfs without a limit has no blocks.
    let size_bytes = Some(statistics.blocks().saturating_mul(page)).filter(|size| *size > 0);
    Ok(VolumeOrigin::Memory(MemoryOrigin {
        device: mount.device.clone(),
        size_bytes,
        huge_page_bytes: (mount.kind == "hugetlbfs").then_some(page),
        root: Ownership::from(&fs::metadata(folder)?),
        below: inside.strip_prefix("/").unwrap_or(inside).to_owned(),
        part: Ownership::from(part),
    }))
}

/// The emptyDir on disk that has the file at `inside`, if one has.
fn on_disk(
    table: &MountTable,
    mount: &TableEntry,
    inside: &Path,
    file: &Metadata,
) -> Option<VolumeOrigin> {
    let (folder_inside, below) = split(inside)?;
    let mut mounts = table.of_device(&mount.device);
    let folder = mounts.find_map(|entry| {
        let folder = entry.shown_at(&folder_inside)?;
        // Another mount may hide it there.
        let found = fs::metadata(part_of(&folder, &below)).ok()?;
        let same = (found.dev(), found.ino()) == (file.dev(), file.ino());
        same.then_some(folder)
    })?;
    Some(VolumeOrigin::EmptyDir { folder, below })
}

/// An emptyDir's folder and what follows it, for a path that leads into one.
fn split(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut components = path.components();
    let mut folder = PathBuf::new();
    loop {
        let component = components.next()?;
        folder.push(component);
        if component.as_os_str() == EMPTY_DIR {
            break;
        }
    }
    folder.push(components.next()?);
    Some((folder, components.as_path().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_dir_is_told_by_its_folder_and_shared_with_nobody() {
        let pod = tempfile::tempdir().unwrap();
        let folder = pod.path().join("volumes/kubernetes.io~empty-dir/cache");
        fs::create_dir_all(folder.join("a/b")).unwrap();
        let whole = VolumeOrigin::EmptyDir {
            folder: folder.clone(),
            below: PathBuf::new(),
        };
        let tmpfs = matches!(of(pod.path()), Ok(VolumeOrigin::Memory(_)));
        assert!(!tmpfs, "a file system in memory that is no emptyDir's");
        assert_eq!(of(&folder).unwrap(), whole);
        let part = VolumeOrigin::EmptyDir {
            folder: folder.clone(),
            below: "a/b".into(),
        };
        assert_eq!(of(&folder.join("a/b")).unwrap(), part);
    }

    #[test]
    fn other_folders_and_files_may_be_anybodys() {
        let folder = tempfile::tempdir().unwrap();
        let shared = VolumeOrigin::Shared { has_mounts: false };
        assert_eq!(of(folder.path()).unwrap(), shared);
        fs::write(folder.path().join("file"), "").unwrap();
        assert_eq!(of(&folder.path().join("file")).unwrap(), shared);
        assert!(of(&folder.path().join("missing")).is_err());
    }

    #[test]
    fn devices_and_sockets_are_told_by_what_they_are() {
        let null = VolumeOrigin::Device {
            block: false,
            major: 1,
            minor: 3,
        };
        assert_eq!(of(Path::new("/dev/null")).unwrap(), null);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(of(&path).unwrap(), VolumeOrigin::Socket);
    }

    #[test]
    fn a_path_into_an_empty_dir_is_split_behind_its_name() {
        let path = Path::new("/pods/1/volumes/kubernetes.io~empty-dir/data/x/y");
        let (folder, below) = split(path).unwrap();
        assert_eq!(
            folder,
            Path::new("/pods/1/volumes/kubernetes.io~empty-dir/data")
        );
        assert_eq!(below, Path::new("x/y"));
        assert_eq!(split(Path::new("/pods/kubernetes.io~empty-dir")), None);
        assert_eq!(split(Path::new("/pods/1")), None);
    }
}
