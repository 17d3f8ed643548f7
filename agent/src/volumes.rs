//! Volumes that mirror a folder of the host (configMap, secret, downward API,
//! projected): made equal to a list of entries in the order that keeps readers
//! safe, new entries first, then changed ones by rename, then removals.
//!
//! Containers may have a volume mounted writable, so nothing in it is trusted:
//! every step is taken from a directory descriptor and follows no link.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

use podvisor_proto::agent::MIRROR_DIR;
use podvisor_proto::agent::v1::VolumeEntry;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

/// Name under which a changed entry is made before it is renamed into place.
const NEW: &str = ".podvisor-new";
/// Deepest folder; the kubelet's layout has three levels and what keys add.
const MAX_DEPTH: usize = 64;

/// Why a volume could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// An id or path is not one that a volume can have.
    #[error("{what} {name:?} is not allowed in a volume")]
    Name {
        /// Volume id, path or type.
        what: &'static str,
        /// The offender.
        name: String,
    },
    /// An entry could not be made, changed or removed.
    #[error("volume entry {path:?}")]
    Entry {
        /// Path inside the volume.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Makes the volume equal to `entries`, creating it on first use.
///
/// # Errors
///
/// [`VolumeError`] naming the entry; what was done before it stays.
pub fn apply(volume_id: &str, entries: &[VolumeEntry]) -> Result<(), VolumeError> {
    apply_in(Path::new(MIRROR_DIR), volume_id, entries)
}

/// Forgets a volume. Containers that still have it mounted keep seeing it empty.
///
/// # Errors
///
/// [`VolumeError::Entry`].
pub fn remove(volume_id: &str) -> Result<(), VolumeError> {
    remove_in(Path::new(MIRROR_DIR), volume_id)
}

fn apply_in(parent: &Path, volume_id: &str, entries: &[VolumeEntry]) -> Result<(), VolumeError> {
    check_id(volume_id)?;
    for entry in entries {
        check_path(&entry.path)?;
    }
    let root = open_volume(&parent.join(volume_id)).map_err(failed(""))?;
    let is_link = |entry: &&VolumeEntry| kind_of(entry) == FileType::Symlink;
    let plain = entries.iter().filter(|entry| !is_link(entry));
    for entry in plain.chain(entries.iter().filter(is_link)) {
        write_entry(root.as_fd(), entry)?;
    }
    let wanted: BTreeSet<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
    remove_others(root.as_fd(), "", &wanted, 0)
}

fn remove_in(parent: &Path, volume_id: &str) -> Result<(), VolumeError> {
    check_id(volume_id)?;
    let path = parent.join(volume_id);
    match open_directory(CWD, &path) {
        Err(Errno::NOENT) => return Ok(()),
        root => {
            let root = root.map_err(io::Error::from).map_err(failed(""))?;
            remove_others(root.as_fd(), "", &BTreeSet::new(), 0)?;
        }
    }
    rustix::fs::rmdir(&path)
        .map_err(io::Error::from)
        .map_err(failed(""))
}

/// Names the entry of a volume that a step failed for; empty for its root.
pub(crate) fn failed(path: &str) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::Entry { path, source }
}

/// Refuses an id that is not one path component.
pub(crate) fn check_id(id: &str) -> Result<(), VolumeError> {
    let mut components = Path::new(id).components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(name)), None) if name.as_bytes() == id.as_bytes() => Ok(()),
        _ => Err(VolumeError::Name {
            what: "volume id",
            name: id.to_owned(),
        }),
    }
}

/// Refuses a path that does not lead downwards.
pub(crate) fn check_path(path: &str) -> Result<(), VolumeError> {
    let normal = |part: &str| !matches!(part, "" | "." | ".." | NEW);
    let allowed = path.is_empty()
        || (path.split('/').all(normal)
            && path.split('/').count() <= MAX_DEPTH
            && !path.contains('\0'));
    if allowed {
        Ok(())
    } else {
        Err(VolumeError::Name {
            what: "path",
            name: path.to_owned(),
        })
    }
}

fn kind_of(entry: &VolumeEntry) -> FileType {
    FileType::from_raw_mode(entry.mode)
}

fn open_volume(path: &Path) -> io::Result<OwnedFd> {
    std::fs::create_dir_all(path)?;
    Ok(open_directory(CWD, path)?)
}

/// Opens a folder, not through a link.
pub(crate) fn open_directory(directory: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, path, flags, Mode::empty())
}

/// Opens a folder of the volume, below its root and through no link.
fn open_beneath(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let path = if path.is_empty() { "." } else { path };
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

fn write_entry(root: BorrowedFd<'_>, entry: &VolumeEntry) -> Result<(), VolumeError> {
    let (parent, name) = entry.path.rsplit_once('/').unwrap_or(("", &entry.path));
    let done = match kind_of(entry) {
        FileType::Directory if entry.path.is_empty() => set_owner_and_mode(root, entry),
        _ if entry.path.is_empty() => {
            return Err(VolumeError::Name {
                what: "type of the root of",
                name: entry.path.clone(),
            });
        }
        kind => open_beneath(root, parent)
            .map_err(io::Error::from)
            .and_then(|directory| match kind {
                FileType::Directory => write_directory(directory.as_fd(), name, entry),
                FileType::RegularFile => write_file(directory.as_fd(), name, entry),
                FileType::Symlink => write_link(directory.as_fd(), name, entry),
                _ => Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "neither file, folder nor link",
                )),
            }),
    };
    done.map_err(failed(&entry.path))
}

fn write_directory(parent: BorrowedFd<'_>, name: &str, entry: &VolumeEntry) -> io::Result<()> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    set_owner_and_mode(open_directory(parent, Path::new(name))?.as_fd(), entry)
}

fn write_file(parent: BorrowedFd<'_>, name: &str, entry: &VolumeEntry) -> io::Result<()> {
    if is_same_file(parent, name, entry) {
        return Ok(());
    }
    discard_new(parent)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(parent, NEW, flags, Mode::RUSR)?;
    let mut rest = entry.data.as_slice();
    while !rest.is_empty() {
        let count = rustix::io::write(&file, rest)?;
        rest = rest.get(count..).unwrap_or_default();
    }
    set_owner_and_mode(file.as_fd(), entry)?;
    Ok(rustix::fs::renameat(parent, NEW, parent, name)?)
}

fn write_link(parent: BorrowedFd<'_>, name: &str, entry: &VolumeEntry) -> io::Result<()> {
    let current = rustix::fs::readlinkat(parent, name, Vec::new());
    if current.is_ok_and(|target| target.as_bytes() == entry.data) {
        return Ok(());
    }
    discard_new(parent)?;
    rustix::fs::symlinkat(entry.data.as_slice(), parent, NEW)?;
    let (owner, group) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    rustix::fs::chownat(
        parent,
        NEW,
        Some(owner),
        Some(group),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    Ok(rustix::fs::renameat(parent, NEW, parent, name)?)
}

/// Whether the file is there as it should be: then readers see no event.
fn is_same_file(parent: BorrowedFd<'_>, name: &str, entry: &VolumeEntry) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::openat(parent, name, flags, Mode::empty()) else {
        return false;
    };
    let Ok(stat) = rustix::fs::fstat(&file) else {
        return false;
    };
    let same_size = u64::try_from(stat.st_size).is_ok_and(|size| size == entry.data.len() as u64);
    if stat.st_mode != entry.mode
        || (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid)
        || !same_size
    {
        return false;
    }
    let mut content = vec![0; entry.data.len()];
    io::Read::read_exact(&mut std::fs::File::from(file), &mut content).is_ok()
        && content == entry.data
}

fn discard_new(parent: BorrowedFd<'_>) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, NEW, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The owner first: changing it clears set-id bits.
fn set_owner_and_mode(fd: BorrowedFd<'_>, entry: &VolumeEntry) -> io::Result<()> {
    rustix::fs::fchown(
        fd,
        Some(Uid::from_raw(entry.uid)),
        Some(Gid::from_raw(entry.gid)),
    )?;
    Ok(rustix::fs::fchmod(
        fd,
        Mode::from_raw_mode(entry.mode & 0o7777),
    )?)
}

/// Removes what `wanted` does not name, links before what they lead to.
fn remove_others(
    directory: BorrowedFd<'_>,
    path: &str,
    wanted: &BTreeSet<&str>,
    depth: usize,
) -> Result<(), VolumeError> {
    if depth > MAX_DEPTH {
        return Err(VolumeError::Name {
            what: "depth of",
            name: path.to_owned(),
        });
    }
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)
        .map_err(io::Error::from)
        .map_err(failed(path))?
    {
        let entry = entry.map_err(io::Error::from).map_err(failed(path))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push((
                entry.file_type() == FileType::Directory,
                entry.file_name().to_owned(),
            ));
        }
    }
    names.sort();
    for (is_directory, name) in names {
        let text = name.to_string_lossy();
        let full = if path.is_empty() {
            text.into_owned()
        } else {
            format!("{path}/{text}")
        };
        if is_directory {
            let below = open_directory(
                directory,
                Path::new(std::ffi::OsStr::from_bytes(name.to_bytes())),
            );
            let below = below.map_err(io::Error::from).map_err(failed(&full))?;
            remove_others(below.as_fd(), &full, wanted, depth + 1)?;
        }
        if !wanted.contains(full.as_str()) {
            let flags = if is_directory {
                AtFlags::REMOVEDIR
            } else {
                AtFlags::empty()
            };
            rustix::fs::unlinkat(directory, name.as_c_str(), flags)
                .map_err(io::Error::from)
                .map_err(failed(&full))?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "volumes_tests.rs"]
mod tests;
