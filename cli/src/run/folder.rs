//! The folder that holds a pod's volumes and files, laid out as the kubelet's
//! (`/var/lib/kubelet/pods/UID`).

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount, umount};
use nix::unistd::{Gid, chown};

use super::{atomic_writer, projection};
use crate::manifest::Objects;
use crate::manifest::volume::{EmptyDir, HostPath, HostPathKind, Medium, Volume};

/// Where the folders of pods are.
const PODS: &str = "/var/lib/podvisor/pods";
/// A file that is there when no container of the pod is to be started any more.
const ENDING: &str = "ending";
/// How long a `podvisor run` takes at most to end when its containers have.
const RELEASE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// A pod's folder.
#[derive(Clone, Debug)]
pub struct PodFolder {
    path: PathBuf,
}

impl PodFolder {
    /// The folder of a pod.
    pub fn of(uid: &str) -> Self {
        Self {
            path: Path::new(PODS).join(uid),
        }
    }

    /// Makes the folder, for root only to list. Who runs the pod holds it by what this answers.
    pub fn create(&self) -> Result<File> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o750);
        let made = builder.create(&self.path);
        made.with_context(|| format!("cannot make {}", self.path.display()))?;
        let held = File::open(&self.path)?;
        match held.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another podvisor run has the pod"),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        match fs::remove_file(self.path.join(ENDING)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(held),
        }
    }

    /// Has who runs the pod start no container of it any more.
    pub fn announce_end(&self) -> Result<()> {
        let file = self.path.join(ENDING);
        match fs::write(&file, "") {
            // Nobody runs a pod without a folder.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot make {}", file.display()))
            }
            _ => Ok(()),
        }
    }

    /// Whether no container is to be started any more.
    pub fn is_ending(&self) -> bool {
        self.path.join(ENDING).exists()
    }

    /// Waits until nobody runs the pod any more.
    pub async fn wait_for_release(&self) -> Result<()> {
        let Ok(folder) = File::open(&self.path) else {
            return Ok(());
        };
        let deadline = Instant::now() + RELEASE;
        loop {
            match folder.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {}
                Err(TryLockError::WouldBlock) => bail!("its podvisor run does not end"),
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Writes the /etc/hosts of the pod's containers; answers its path.
    pub fn write_hosts(&self, content: &str) -> Result<PathBuf> {
        let path = self.path.join("etc-hosts");
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Makes a volume and answers where it is. Groups in `fs_group` own what is made here.
    pub fn create_volume(
        &self,
        volume: &Volume,
        objects: &Objects,
        fs_group: Option<u32>,
    ) -> Result<PathBuf> {
        if volume.sources() > 1 {
            bail!("more than one source");
        }
        if let Some(host_path) = &volume.host_path {
            return existing(host_path);
        }
        if let Some(config_map) = &volume.config_map {
            let files = projection::of_config_map(config_map, objects)?;
            return self.projected("configmap", volume, &files, fs_group);
        }
        if let Some(secret) = &volume.secret {
            let files = projection::of_secret(secret, objects)?;
            return self.projected("secret", volume, &files, fs_group);
        }
        if let Some(projected) = &volume.projected {
            let files = projection::of_projected(projected, objects)?;
            return self.projected("projected", volume, &files, fs_group);
        }
        let empty_dir = volume.empty_dir.clone().unwrap_or_default();
        let path = self.volume_folder("empty-dir", volume)?;
        mount_medium(&empty_dir, &path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o777))?;
        own(&path, fs_group, 0o660)?;
        Ok(path)
    }

    /// Unmounts and deletes everything in the folder.
    pub fn remove(&self) -> Result<()> {
        for mount in mounts_below(&self.path)?.iter().rev() {
            umount(mount).with_context(|| format!("cannot unmount {}", mount.display()))?;
        }
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Secrets, and what may contain them, never reach a disk.
    fn projected(
        &self,
        plugin: &str,
        volume: &Volume,
        files: &projection::Files,
        fs_group: Option<u32>,
    ) -> Result<PathBuf> {
        let path = self.volume_folder(plugin, volume)?;
        if plugin != "configmap" {
            mount_tmpfs(&path, "mode=0755")?;
        }
        fs::set_permissions(&path, Permissions::from_mode(0o777))?;
        atomic_writer::write(&path, files)
            .with_context(|| format!("cannot write to {}", path.display()))?;
        own(&path, fs_group, 0o440)?;
        Ok(path)
    }

    fn volume_folder(&self, plugin: &str, volume: &Volume) -> Result<PathBuf> {
        let plugin = format!("kubernetes.io~{plugin}");
        let path = self
            .path
            .join("volumes")
            .join(plugin)
            .join(volume.name.as_str());
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o750);
        builder
            .create(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }
}

fn mount_medium(empty_dir: &EmptyDir, path: &Path) -> Result<()> {
    match (empty_dir.medium, empty_dir.size_limit) {
        (Medium::Disk, None) => Ok(()),
        (Medium::Disk, Some(_)) => {
            bail!("emptyDir.sizeLimit: only supported by podvisor run with medium Memory")
        }
        (Medium::Memory, None) => mount_tmpfs(path, "mode=0777"),
        (Medium::Memory, Some(limit)) => {
            mount_tmpfs(path, &format!("mode=0777,size={}", limit.units()))
        }
    }
}

fn mount_tmpfs(path: &Path, options: &str) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options))
        .with_context(|| format!("cannot mount a tmpfs on {}", path.display()))
}

/// Gives a volume to a group, as the kubelet does for `fsGroup`: `file_bits` are added to every
/// file's permissions, and folders hand the group down.
fn own(path: &Path, group: Option<u32>, file_bits: u32) -> Result<()> {
    let Some(group) = group else { return Ok(()) };
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_symlink() {
        return Ok(());
    }
    chown(path, None, Some(Gid::from_raw(group)))
        .with_context(|| format!("cannot give {} to group {group}", path.display()))?;
    let bits = if metadata.is_dir() {
        file_bits | 0o2110
    } else {
        file_bits
    };
    let mode = metadata.permissions().mode() | bits;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            own(&entry?.path(), Some(group), file_bits)?;
        }
    }
    Ok(())
}

/// Makes sure that a hostPath is what it should be.
fn existing(host_path: &HostPath) -> Result<PathBuf> {
    let path = PathBuf::from(&host_path.path);
    if !path.is_absolute() || host_path.path.split('/').any(|part| part == "..") {
        bail!(
            "hostPath.path: {:?} is not an absolute path without '..'",
            host_path.path
        );
    }
    let missing = !path.exists();
    match host_path.kind {
        HostPathKind::DirectoryOrCreate if missing => {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&path)?;
        }
        HostPathKind::FileOrCreate if missing => drop(File::create_new(&path)?),
        _ => {}
    }
    let kind = fs::metadata(&path)
        .with_context(|| format!("hostPath.path: {}", path.display()))?
        .file_type();
    let right = match host_path.kind {
        HostPathKind::Any => true,
        HostPathKind::Directory | HostPathKind::DirectoryOrCreate => kind.is_dir(),
        HostPathKind::File | HostPathKind::FileOrCreate => kind.is_file(),
        HostPathKind::Socket => kind.is_socket(),
        HostPathKind::CharDevice => kind.is_char_device(),
        HostPathKind::BlockDevice => kind.is_block_device(),
    };
    if !right {
        bail!(
            "hostPath.path: {} is no {:?}",
            path.display(),
            host_path.kind
        );
    }
    Ok(path)
}

/// Mount points below `folder`, in the order they were mounted.
fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read mountinfo")?;
    // proc_pid_mountinfo(5): the fifth field. Nothing below the folder needs its octal escapes.
    let points = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(folder)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_is_announced_to_who_holds_the_folder() {
        let place = tempfile::tempdir().unwrap();
        let folder = PodFolder {
            path: place.path().join("uid"),
        };
        // A pod that is not there.
        folder.announce_end().unwrap();
        folder.wait_for_release().await.unwrap();
        let held = folder.create().unwrap();
        assert!(folder.create().is_err(), "two have the pod");
        assert!(!folder.is_ending());
        folder.announce_end().unwrap();
        assert!(folder.is_ending());
        let let_go = async {
            tokio::time::sleep(POLL).await;
            drop(held);
        };
        let (released, ()) = tokio::join!(folder.wait_for_release(), let_go);
        released.unwrap();
        drop(folder.create().unwrap());
        assert!(!folder.is_ending(), "the pod is run once more");
    }

    fn host_path(path: &Path, kind: HostPathKind) -> Result<PathBuf> {
        existing(&HostPath {
            path: path.display().to_string(),
            kind,
        })
    }

    #[test]
    fn a_host_path_must_be_what_the_manifest_says() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        assert!(host_path(&file, HostPathKind::Any).is_err());
        assert!(host_path(&file, HostPathKind::File).is_err());
        host_path(&file, HostPathKind::FileOrCreate).unwrap();
        host_path(&file, HostPathKind::File).unwrap();
        assert!(host_path(&file, HostPathKind::Directory).is_err());
        host_path(&folder.path().join("a/b"), HostPathKind::DirectoryOrCreate).unwrap();
        assert!(host_path(&folder.path().join("a/../a"), HostPathKind::Any).is_err());
        assert!(host_path(Path::new("relative"), HostPathKind::Any).is_err());
    }

    #[test]
    fn a_group_gets_what_is_in_the_volume() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "x").unwrap();
        fs::set_permissions(folder.path().join("file"), Permissions::from_mode(0o600)).unwrap();
        own(folder.path(), Some(nix::unistd::getgid().as_raw()), 0o440).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&folder.path().join("file")), 0o640);
        assert_eq!(mode(folder.path()) & 0o2070, 0o2050);
    }
}
