//! Volumes that the kubelet replaces as a whole (configMap, secret, downwardAPI, projected), copied
//! into the guest and kept equal: there readers see the swap of `..data` at once, with inotify
//! events, as on any node.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::Mode;
use podvisor_proto::agent::v1::{AgentClient, ApplyVolumeRequest, VolumeEntry};
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdRegisterError};
use tokio::task::AbortHandle;

use super::error::TaskError;
use crate::pod::users::UserMaps;

/// Bytes and entries of a volume that still fit into one message to the agent (4 MiB) with ease;
/// Kubernetes' own limit for a configMap or secret is 1 MiB.
const CONTENT_LEN_MAX: u64 = 3 << 20;
const ENTRIES_MAX: usize = 4096;
/// Folders inside each other.
const DEPTH_MAX: usize = 16;
/// After a change, what belongs to it is given time to arrive.
const SETTLE: Duration = Duration::from_millis(20);

/// Why a volume cannot be mirrored.
#[derive(Debug, Error)]
pub enum MirrorError {
    /// The host's folder cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// What was read.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// It is too large for a copy.
    #[error("{0} is too large to be mirrored")]
    TooLarge(PathBuf),
    /// It cannot be watched.
    #[error("cannot watch {path}")]
    Watch {
        /// The folder.
        path: PathBuf,
        /// What the host said.
        source: Errno,
    },
}

/// A volume to be mirrored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Original {
    /// Where it is.
    pub folder: PathBuf,
    /// The owners of its files, where they are others than its file system says.
    pub owners: Option<UserMaps>,
}

/// Reads all of a volume, without following a link out of it.
///
/// # Errors
/// [`MirrorError::Read`], [`MirrorError::TooLarge`].
pub fn read_volume(original: &Original) -> Result<Vec<VolumeEntry>, MirrorError> {
    let folder = original.folder.as_path();
    let root = open(
        folder,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    );
    let read = |e: Errno| MirrorError::Read {
        path: folder.to_owned(),
        source: e.into(),
    };
    let mut reader = Reader {
        folder,
        owners: original.owners.as_ref(),
        root: root.map_err(read)?,
        entries: Vec::new(),
        len: 0,
    };
    reader.directory(Path::new(""), 0)?;
    Ok(reader.entries)
}

struct Reader<'a> {
    folder: &'a Path,
    owners: Option<&'a UserMaps>,
    root: OwnedFd,
    entries: Vec<VolumeEntry>,
    len: u64,
}

impl Reader<'_> {
    /// Adds a folder and all below it.
    fn directory(&mut self, path: &Path, depth: usize) -> Result<(), MirrorError> {
        if depth > DEPTH_MAX {
            return Err(MirrorError::TooLarge(self.folder.to_owned()));
        }
        let absolute = self.folder.join(path);
        let failed = |source| MirrorError::Read {
            path: absolute.clone(),
            source,
        };
        let metadata = std::fs::symlink_metadata(&absolute).map_err(failed)?;
        self.push(path, &metadata, Vec::new())?;
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&absolute).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name());
        }
        names.sort();
        for name in names {
            self.entry(&path.join(name), depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, depth: usize) -> Result<(), MirrorError> {
        let absolute = self.folder.join(path);
        let failed = |source| MirrorError::Read {
            path: absolute.clone(),
            source,
        };
        let metadata = std::fs::symlink_metadata(&absolute).map_err(failed)?;
        if metadata.is_dir() {
            return self.directory(path, depth + 1);
        }
        if metadata.is_symlink() {
            let target = std::fs::read_link(&absolute).map_err(failed)?;
            return self.push(
                path,
                &metadata,
                target.into_os_string().into_encoded_bytes(),
            );
        }
        if !metadata.is_file() {
            return Ok(());
        }
        let content = self.content(path).map_err(failed)?;
        self.push(path, &metadata, content)
    }

    /// A file's content; of one that grows meanwhile no more than the bound.
    fn content(&self, path: &Path) -> io::Result<Vec<u8>> {
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let file = std::fs::File::from(openat2(&self.root, path, how)?);
        let mut content = Vec::new();
        file.take(CONTENT_LEN_MAX + 1).read_to_end(&mut content)?;
        Ok(content)
    }

    fn push(
        &mut self,
        path: &Path,
        metadata: &std::fs::Metadata,
        data: Vec<u8>,
    ) -> Result<(), MirrorError> {
        let too_large = || MirrorError::TooLarge(self.folder.to_owned());
        self.len += u64::try_from(data.len()).unwrap_or(u64::MAX);
        if self.len > CONTENT_LEN_MAX || self.entries.len() >= ENTRIES_MAX {
            return Err(too_large());
        }
        let (uid, gid) = (metadata.uid(), metadata.gid());
        self.entries.push(VolumeEntry {
            path: path.to_str().ok_or_else(too_large)?.to_owned(),
            mode: metadata.mode(),
            uid: self.owners.map_or(uid, |owners| owners.user(uid)),
            gid: self.owners.map_or(gid, |owners| owners.group(gid)),
            data,
        });
        Ok(())
    }
}

/// A watch on a volume's folder.
struct Watch {
    inotify: AsyncFd<WatchFile>,
}

/// The descriptor as tokio waits for it.
struct WatchFile(Inotify);

impl AsFd for WatchFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for WatchFile {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    /// Watches `folder` from now on.
    ///
    /// # Errors
    /// [`MirrorError::Watch`].
    fn new(folder: &Path) -> Result<Self, MirrorError> {
        let failed = |source| MirrorError::Watch {
            path: folder.to_owned(),
            source,
        };
        let inotify =
            Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(failed)?;
        let changes = AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB;
        inotify.add_watch(folder, changes).map_err(failed)?;
        let failed = |e: AsyncFdRegisterError<WatchFile>| MirrorError::Read {
            path: folder.to_owned(),
            source: e.into_parts().1,
        };
        // SAFETY: `WatchFile` owns its descriptor and always names the same one, which is open for
        // as long as the `AsyncFd` that owns it.
        let inotify =
            unsafe { AsyncFd::register_with_interest(WatchFile(inotify), Interest::READABLE) };
        Ok(Self {
            inotify: inotify.map_err(failed)?,
        })
    }

    /// Waits for a change.
    ///
    /// # Errors
    /// When the watch is broken.
    async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.inotify.readable().await?;
            match ready.try_io(|inotify| Ok(inotify.get_ref().0.read_events()?)) {
                Ok(events) => return events.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}

/// Copies a volume into the guest as `name`, and has the copy kept equal until the task is aborted.
///
/// # Errors
/// [`TaskError::Mirror`], [`TaskError::Agent`].
pub async fn begin(
    original: Original,
    name: &str,
    agent: &AgentClient,
) -> Result<AbortHandle, TaskError> {
    // Watched before it is read: no change is missed.
    let watch = Watch::new(&original.folder)?;
    let entries = read_volume(&original)?;
    let request = ApplyVolumeRequest {
        volume_id: name.to_owned(),
        entries,
    };
    agent.apply_volume(request).await?;
    let follower = follow(watch, original, name.to_owned(), agent.clone());
    Ok(tokio::spawn(follower).abort_handle())
}

/// Keeps the guest's copy equal.
async fn follow(watch: Watch, original: Original, volume_id: String, agent: AgentClient) {
    while watch.changed().await.is_ok() {
        tokio::time::sleep(SETTLE).await;
        let entries = match read_volume(&original) {
            Ok(entries) => entries,
            // The kubelet removes the folder with the pod.
            Err(MirrorError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                continue;
            }
            Err(error) => {
                tracing::warn!(%error, "a changed volume is not passed on");
                continue;
            }
        };
        let request = ApplyVolumeRequest {
            volume_id: volume_id.clone(),
            entries,
        };
        if let Err(error) = agent.apply_volume(request).await {
            tracing::warn!(%error, "a changed volume did not reach the guest");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn volume() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("..2026")).unwrap();
        std::fs::write(folder.path().join("..2026/key"), "value").unwrap();
        symlink("..2026", folder.path().join("..data")).unwrap();
        symlink("..data/key", folder.path().join("key")).unwrap();
        folder
    }

    fn original(folder: &tempfile::TempDir) -> Original {
        Original {
            folder: folder.path().to_owned(),
            owners: None,
        }
    }

    #[test]
    fn files_have_the_owners_of_the_map() {
        let folder = volume();
        let owner = std::fs::metadata(folder.path()).unwrap().uid();
        let map = format!("{owner}:1000:1");
        let owners = UserMaps::of_options(&map, "0:0:1");
        let entries = read_volume(&Original {
            owners,
            ..original(&folder)
        });
        assert!(entries.unwrap().iter().all(|entry| entry.uid == 1000));
    }

    #[test]
    fn parents_come_before_children_and_links_stay_links() {
        let folder = volume();
        let entries = read_volume(&original(&folder)).unwrap();
        let paths: Vec<_> = entries.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(paths, ["", "..2026", "..2026/key", "..data", "key"]);
        assert_eq!(entries[2].data, b"value");
        assert_eq!(entries[3].data, b"..2026");
        assert_eq!(entries[4].data, b"..data/key");
    }

    #[test]
    fn a_volume_beyond_the_bound_is_refused() {
        let folder = volume();
        let large = vec![0; usize::try_from(CONTENT_LEN_MAX).unwrap() + 1];
        std::fs::write(folder.path().join("..2026/large"), large).unwrap();
        assert!(matches!(
            read_volume(&original(&folder)),
            Err(MirrorError::TooLarge(_))
        ));
    }

    #[tokio::test]
    async fn a_swap_of_the_data_link_is_noticed() {
        let folder = volume();
        let watch = Watch::new(folder.path()).unwrap();
        symlink("..2027", folder.path().join("..data_tmp")).unwrap();
        std::fs::rename(
            folder.path().join("..data_tmp"),
            folder.path().join("..data"),
        )
        .unwrap();
        tokio::time::timeout(Duration::from_secs(5), watch.changed())
            .await
            .unwrap()
            .unwrap();
    }
}
