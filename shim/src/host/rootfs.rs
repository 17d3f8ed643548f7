//! Mounts and unmounts a container's root file system in the mount namespace of this process.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::chdir;
use thiserror::Error;

use super::layers::Layers;
use super::mount_options::{MountOptions, OptionError};
use super::overlay::{self, DATA_LEN_MAX, RelativeData};
use super::{HostMount, RootfsRequest};

/// Mounts stacked on one folder at most; more is a loop.
const STACK_MAX: usize = 64;

/// Why a root file system is not mounted.
#[derive(Debug, Error)]
pub enum MountError {
    /// The folder cannot be made.
    #[error("cannot make {path}")]
    Target {
        /// The folder.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The options cannot be honoured.
    #[error("mount of {kind} {mount_source}")]
    Options {
        /// File system type.
        kind: String,
        /// Its source.
        mount_source: String,
        /// What is wrong.
        source: OptionError,
    },
    /// The host refused a mount.
    #[error("mount of {kind} {mount_source} at {target} failed")]
    Mount {
        /// File system type.
        kind: String,
        /// Its source.
        mount_source: String,
        /// Where it was to be.
        target: PathBuf,
        /// What the host said.
        source: Errno,
    },
    /// The layers cannot have other owners.
    #[error("the files of {kind} {mount_source} cannot be the pod's users'")]
    Owners {
        /// File system type.
        kind: String,
        /// Its source.
        mount_source: String,
        /// What the host said.
        source: io::Error,
    },
    /// The host refused to unmount.
    #[error("cannot unmount {path}")]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// What the host said.
        source: Errno,
    },
}

/// Mounts all of a request, or nothing.
pub(super) fn mount_all(request: &RootfsRequest) -> Result<(), MountError> {
    let target = |source| MountError::Target {
        path: request.target.clone(),
        source,
    };
    fs::create_dir_all(&request.target).map_err(target)?;
    for entry in &request.mounts {
        if let Err(error) = mount_one(entry, &request.target) {
            let _ = unmount_all(&request.target);
            return Err(error);
        }
    }
    Ok(())
}

fn mount_one(entry: &HostMount, target: &Path) -> Result<(), MountError> {
    let mut options =
        MountOptions::parse(&entry.options).map_err(|source| MountError::Options {
            kind: entry.kind.clone(),
            mount_source: entry.source.clone(),
            source,
        })?;
    // The overlay has copies of its layers' mounts: these are needed until it is mounted.
    let _layers = match options.owners.take() {
        Some(owners) => {
            let layers = Layers::mount(&mut options.data, &owners, target);
            Some(layers.map_err(|source| MountError::Owners {
                kind: entry.kind.clone(),
                mount_source: entry.source.clone(),
                source,
            })?)
        }
        None => None,
    };
    let failed = |source| MountError::Mount {
        kind: entry.kind.clone(),
        mount_source: entry.source.clone(),
        target: target.to_owned(),
        source,
    };
    let data = options.data.join(",");
    let is_bind = entry.kind == "bind" || options.flags.contains(MsFlags::MS_BIND);
    if is_bind {
        return bind(&entry.source, target, options.flags).map_err(failed);
    }
    if data.len() > DATA_LEN_MAX
        && let Some(relative) = overlay::relative(&options.data)
    {
        return mount_within(&relative, entry, target, options.flags).map_err(failed);
    }
    mount(
        Some(entry.source.as_str()),
        target,
        Some(entry.kind.as_str()),
        options.flags,
        Some(data.as_str()),
    )
    .map_err(failed)
}

/// A bind mount; its flags take a second call.
fn bind(source: &str, target: &Path, flags: MsFlags) -> Result<(), Errno> {
    let kind = MsFlags::MS_BIND | (flags & MsFlags::MS_REC);
    mount(Some(source), target, None::<&str>, kind, None::<&str>)?;
    let others = flags & !(MsFlags::MS_BIND | MsFlags::MS_REC);
    if others.is_empty() {
        return Ok(());
    }
    let remount = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | others;
    mount(None::<&str>, target, None::<&str>, remount, None::<&str>)
}

/// Mounts on a thread of its own that is in the folder to which the data is relative.
fn mount_within(
    relative: &RelativeData,
    entry: &HostMount,
    target: &Path,
    flags: MsFlags,
) -> Result<(), Errno> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // The working folder belongs to all threads until one asks for its own.
            unshare(CloneFlags::CLONE_FS)?;
            chdir(&relative.folder)?;
            let kind = entry.kind.as_str();
            mount(
                Some(entry.source.as_str()),
                target,
                Some(kind),
                flags,
                Some(relative.data.as_str()),
            )
        });
        thread.join().unwrap_or(Err(Errno::EAGAIN))
    })
}

/// Unmounts whatever is mounted at `target`.
///
/// # Errors
/// [`MountError::Unmount`].
pub fn unmount_all(target: &Path) -> Result<(), MountError> {
    for _ in 0..STACK_MAX {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // No mount point, or not even a folder.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(source) => {
                return Err(MountError::Unmount {
                    path: target.to_owned(),
                    source,
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_no_mount_point_needs_no_unmount() {
        let folder = tempfile::tempdir().unwrap();
        unmount_all(folder.path()).unwrap();
        unmount_all(&folder.path().join("missing")).unwrap();
    }

    #[test]
    fn a_failed_mount_says_what_was_mounted_where() {
        let folder = tempfile::tempdir().unwrap();
        let request = RootfsRequest {
            target: folder.path().join("rootfs"),
            mounts: vec![HostMount {
                kind: "nosuchfs".to_owned(),
                source: "overlay".to_owned(),
                options: vec![],
            }],
        };
        let error = mount_all(&request).unwrap_err().to_string();
        assert!(
            error.contains("nosuchfs") && error.contains("rootfs"),
            "{error}"
        );
    }
}
