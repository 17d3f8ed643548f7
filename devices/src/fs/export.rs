//! One export: a directory or file of the host that is a subtree of what the guest sees.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, mpsc};
use std::time::Duration;

use rustix::fs::{OFlags, syncfs};

use super::attr::{FileStat, Identity, guest_ino};
use super::file_handle::{FileHandle, MountedHandle};
use super::proc_fd::ProcFd;

/// How long a guest keeps what only it changes. Longer than a pod's caches live, short of
/// overflowing a guest's jiffies.
const ALWAYS: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a guest may trust what it has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CachePolicy {
    /// For ever: nobody but this guest changes the export. Container roots, emptyDir volumes.
    Always,
    /// So long and no longer; data are read anew when a file is opened or seen to have changed.
    /// For what the host or other pods change as well: hostPath and persistent volumes.
    Bounded(Duration),
}

impl CachePolicy {
    /// How long names and attributes stay valid in the guest.
    pub(super) fn timeout(self) -> Duration {
        match self {
            Self::Always => ALWAYS,
            Self::Bounded(timeout) => timeout.min(ALWAYS),
        }
    }
}

/// What a guest may change in an export; anything else fails with `EROFS`. In order of how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Writes {
    /// Nothing.
    Nothing,
    /// What lies on mounts below that of the export's root, as in a bind mount that is read-only,
    /// but not recursively so.
    OtherMounts,
    /// Everything.
    Everything,
}

/// What a guest may do with an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportOptions {
    /// What it may change.
    pub writes: Writes,
    /// What the guest may keep.
    pub cache: CachePolicy,
}

/// One export while anything refers to it.
pub(super) struct Export {
    /// Never given to another export of this tree.
    pub id: u64,
    /// Its name in the tree's root.
    pub name: String,
    /// What the guest may keep.
    pub cache: CachePolicy,
    writes: RwLock<Writes>,
    root: OwnedFd,
    root_identity: Identity,
    root_kind: u32,
    /// Mounts met below the root, by mount ID, each with a file to open handles through where
    /// its file system has handles.
    mounts: Mutex<HashMap<u64, Option<Arc<File>>>>,
    /// Devices met below the root with their volume numbers.
    volumes: Mutex<Vec<(u64, u64)>>,
    volume_counter: Arc<AtomicU64>,
    removed: AtomicBool,
    /// Dropped last, so that the other end sees when no descriptor of ours is left.
    _alive: mpsc::Sender<Infallible>,
}

impl Export {
    /// An export and what is disconnected when its last descriptor is closed.
    ///
    /// # Errors
    /// Those of statx(2) on `root`.
    pub fn new(
        id: u64,
        name: &str,
        root: OwnedFd,
        options: ExportOptions,
        volume_counter: Arc<AtomicU64>,
    ) -> io::Result<(Self, mpsc::Receiver<Infallible>)> {
        let stat = FileStat::of(&root)?;
        let (alive, gone) = mpsc::channel();
        let export = Self {
            id,
            name: name.to_owned(),
            cache: options.cache,
            writes: RwLock::new(options.writes),
            root,
            root_identity: stat.identity(),
            root_kind: stat.kind(),
            mounts: Mutex::default(),
            volumes: Mutex::default(),
            volume_counter,
            removed: AtomicBool::new(false),
            _alive: alive,
        };
        Ok((export, gone))
    }

    /// Its root once more.
    ///
    /// # Errors
    /// Those of fcntl(2): no descriptor is left.
    pub fn open_root(&self) -> io::Result<OwnedFd> {
        self.root.try_clone()
    }

    /// Whether a file is the export's root.
    pub fn is_root(&self, identity: &Identity) -> bool {
        self.root_identity == *identity
    }

    /// The inode number a guest sees on its root.
    pub fn root_ino(&self) -> u64 {
        guest_ino(self.volume(self.root_identity.dev), self.root_identity.ino)
    }

    /// Whether it has been taken out of the tree.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// Marks it as taken out of the tree.
    pub fn mark_removed(&self) {
        self.removed.store(true, Ordering::Release);
    }

    /// Fails with `EROFS` when the guest may not change a file here.
    pub fn check_writable(&self, file: &Identity) -> io::Result<()> {
        let allowed = match self.writes() {
            Writes::Everything => true,
            Writes::OtherMounts => file.mount != self.root_identity.mount,
            Writes::Nothing => false,
        };
        if allowed {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::EROFS))
        }
    }

    /// What the guest may change.
    pub fn writes(&self) -> Writes {
        *self.writes.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the guest change at least this much.
    pub fn allow_writes(&self, writes: Writes) {
        let mut allowed = self.writes.write().unwrap_or_else(PoisonError::into_inner);
        *allowed = writes.max(*allowed);
    }

    /// Writes back what the root's file system has pending.
    ///
    /// # Errors
    /// Those of syncfs(2): an earlier write failed.
    pub fn sync(&self, proc_fd: &ProcFd) -> io::Result<()> {
        if !has_plain_opening(self.root_kind) {
            return Ok(());
        }
        Ok(syncfs(
            proc_fd.reopen(&self.root, OFlags::RDONLY | OFlags::NONBLOCK)?,
        )?)
    }

    /// The volume number of a device below this export, a new one for a new device.
    pub fn volume(&self, dev: u64) -> u64 {
        let mut volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, volume)) = volumes.iter().find(|(known, _)| *known == dev) {
            return *volume;
        }
        let volume = self.volume_counter.fetch_add(1, Ordering::Relaxed);
        volumes.push((dev, volume));
        volume
    }

    /// The handle of a file below this export, where its file system has handles that can be
    /// opened again.
    ///
    /// # Errors
    /// Those of name_to_handle_at(2).
    pub fn handle_of(
        &self,
        proc_fd: &ProcFd,
        file: &OwnedFd,
        stat: &FileStat,
    ) -> io::Result<Option<MountedHandle>> {
        let Some(handle) = FileHandle::of(file)? else {
            return Ok(None);
        };
        let mount_id = stat.identity().mount;
        let mut mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = mounts.get(&mount_id) {
            return Ok(known.clone().map(|mount| MountedHandle { handle, mount }));
        }
        if !has_plain_opening(stat.kind()) {
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let mount = proc_fd.reopen(file.as_fd(), flags).ok().map(Arc::new);
        let mount = mount.filter(|mount| handle.open(&**mount, libc::O_PATH).is_ok());
        mounts.insert(mount_id, mount.clone());
        Ok(mount.map(|mount| MountedHandle { handle, mount }))
    }
}

/// Whether files of this type can be opened for reading without other effects.
fn has_plain_opening(kind: u32) -> bool {
    matches!(kind, libc::S_IFREG | libc::S_IFDIR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roots_mount_alone_can_be_read_only() {
        let folder = tempfile::tempdir().unwrap();
        let options = ExportOptions {
            writes: Writes::OtherMounts,
            cache: CachePolicy::Always,
        };
        let root = File::open(folder.path()).unwrap().into();
        let (export, _gone) = Export::new(1, "volume", root, options, Arc::default()).unwrap();
        let own = export.root_identity;
        let below = Identity {
            mount: own.mount + 1,
            ..own
        };
        let refused = export.check_writable(&own).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        assert!(export.check_writable(&below).is_ok());
    }
}
