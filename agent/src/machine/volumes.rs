//! The pod's volumes in the machine's own tree: what the host shares, copies of what the kubelet
//! replaces, and file systems in memory, each bound to its place.
//!
//! All of it can be done again: after a reboot, which leaves nothing, and by an agent that was
//! started once more, which finds what the one before has left.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::time::Duration;

use podvisor_proto::agent::v1::{ApplyVolumeRequest, MakeVolumeRequest, VolumeMount};
use podvisor_proto::agent::{FS_TAG, MEMORY_DIR, MIRROR_DIR, SHARED_DIR};
use podvisor_proto::machine::VOLUMES_MOUNTED;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind_recursive, mount_remount};

use crate::volumes::{VolumeError, failed};
use crate::{memory_volumes, volumes};

/// What no volume may bring into a machine.
const HARDENED: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
/// The mode of folders that only lead to volumes: who may use one goes by its place.
const OWN_MODE: u32 = 0o700;
/// How often, and how long apart, the device is looked for: its driver is a module of the machine's
/// kernel, which may take a moment.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// Makes a copy equal to the host's volume ([`volumes::apply`]). It is in memory, whatever the
/// machine has at /run: nothing of a Secret comes to lie on a disk.
///
/// # Errors
///
/// [`VolumeError`].
pub fn apply(request: &ApplyVolumeRequest) -> Result<(), VolumeError> {
    make_memory_folder(Path::new(MIRROR_DIR)).map_err(failed(""))?;
    volumes::apply(&request.volume_id, &request.entries)
}

/// Makes a volume in the machine's memory ([`memory_volumes::make`]).
///
/// # Errors
///
/// [`VolumeError`].
pub fn make(request: &MakeVolumeRequest) -> Result<(), VolumeError> {
    make_memory_folder(Path::new(MEMORY_DIR)).map_err(failed(""))?;
    memory_volumes::make(request)
}

/// Gives volumes their places; yields what is wrong with those that do not get there.
pub fn mount_all(mounts: &[VolumeMount]) -> Vec<String> {
    let failures = mount_each(mounts);
    let told = Path::new(VOLUMES_MOUNTED);
    let folder = told.parent().map_or(Ok(()), fs::create_dir_all);
    // Who waits for it does so for a while only.
    let _ = folder.and_then(|()| fs::write(told, ""));
    failures
}

fn mount_each(mounts: &[VolumeMount]) -> Vec<String> {
    let is_shared = |mount: &VolumeMount| Path::new(&mount.source).starts_with(SHARED_DIR);
    let shared = if mounts.iter().any(is_shared) {
        mount_shared()
    } else {
        Ok(())
    };
    let mut failures = Vec::new();
    for volume in mounts {
        let mounted = match &shared {
            Err(error) if is_shared(volume) => Err(io::Error::new(error.kind(), error.to_string())),
            _ => mount_one(volume),
        };
        if let Err(error) = mounted {
            let failure = format!("{}: {error}", volume.target);
            tracing::error!("cannot mount the volume at {failure}");
            failures.push(failure);
        }
    }
    failures
}

/// Mounts the host's file system, of which each volume is a folder or file.
fn mount_shared() -> io::Result<()> {
    let folder = Path::new(SHARED_DIR);
    make_folder(folder)?;
    if is_mounted(folder)? {
        return Ok(());
    }
    let mut tries = 0;
    loop {
        tries += 1;
        match mount(FS_TAG, folder, "virtiofs", HARDENED, c"") {
            // No such file system yet, or no such device.
            Err(Errno::NODEV | Errno::INVAL) if tries < TRIES => std::thread::sleep(PAUSE),
            Err(errno) => {
                let message = format!("mount -t virtiofs {FS_TAG}: {}", io::Error::from(errno));
                return Err(io::Error::new(errno.kind(), message));
            }
            Ok(()) => return Ok(()),
        }
    }
}

fn mount_one(volume: &VolumeMount) -> io::Result<()> {
    let (source, target) = (Path::new(&volume.source), Path::new(&volume.target));
    let wanted = fs::metadata(source)?;
    make_place(target, wanted.is_dir())?;
    if !is_same(&fs::metadata(target)?, &wanted) {
        mount_bind_recursive(source, target)?;
    }
    let mut flags = MountFlags::BIND | MountFlags::NOSUID;
    let kind = wanted.file_type();
    if !kind.is_char_device() && !kind.is_block_device() {
        flags |= MountFlags::NODEV;
    }
    if volume.read_only {
        flags |= MountFlags::RDONLY;
    }
    Ok(mount_remount(target, flags, c"")?)
}

/// Makes what a volume is bound to, and the folders that lead there, where they are missing.
fn make_place(target: &Path, is_folder: bool) -> io::Result<()> {
    if is_folder {
        return fs::create_dir_all(target);
    }
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder)?;
    }
    match File::create_new(target) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Whether both are the same file, as seen through different mounts of its file system.
fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

fn make_memory_folder(folder: &Path) -> io::Result<()> {
    make_folder(folder)?;
    if !is_mounted(folder)? {
        mount("podvisor", folder, "tmpfs", HARDENED, c"mode=0700")?;
    }
    Ok(())
}

fn make_folder(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    Ok(rustix::fs::chmod(folder, Mode::from_raw_mode(OWN_MODE))?)
}

/// Whether a file system of its own is mounted on a folder.
fn is_mounted(folder: &Path) -> io::Result<bool> {
    let parent = folder.parent().unwrap_or(folder);
    Ok(fs::metadata(folder)?.dev() != fs::metadata(parent)?.dev())
}

#[cfg(test)]
mod tests {
    use podvisor_proto::agent::v1::VolumeEntry;

    use super::*;

    #[test]
    fn a_missing_place_is_made_and_an_existing_one_stays() {
        let root = tempfile::tempdir().unwrap();
        let (folder, file) = (root.path().join("a/b"), root.path().join("c/d.conf"));
        for _ in 0..2 {
            make_place(&folder, true).unwrap();
            make_place(&file, false).unwrap();
        }
        assert!(folder.is_dir());
        fs::write(&file, "kept").unwrap();
        make_place(&file, false).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
        assert!(make_place(&file, true).is_err(), "a folder on a file");
    }

    #[test]
    fn a_failure_names_the_place_and_leaves_the_others_alone() {
        let root = tempfile::tempdir().unwrap();
        let missing = root.path().join("missing").display().to_string();
        let mount = |target: &str| VolumeMount {
            source: missing.clone(),
            target: root.path().join(target).display().to_string(),
            read_only: true,
        };
        let failures = mount_each(&[mount("one"), mount("two")]);
        assert_eq!(failures.len(), 2);
        assert!(failures[0].contains("one: "), "{failures:?}");
        assert!(!root.path().join("one").exists(), "made for nothing");
    }

    /// Gives the thread mounts of its own, with an empty /run.
    fn enter_mount_namespace() {
        let flags = rustix::thread::UnshareFlags::NEWNS;
        // SAFETY: this changes nothing but where this thread's mounts are seen.
        unsafe { rustix::thread::unshare_unsafe(flags) }.unwrap();
        let private = rustix::mount::MountPropagationFlags::PRIVATE
            | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        mount("run", "/run", "tmpfs", MountFlags::empty(), c"").unwrap();
    }

    fn entry(path: &str, mode: u32, data: &str) -> VolumeEntry {
        VolumeEntry {
            path: path.to_owned(),
            mode,
            data: data.into(),
            ..VolumeEntry::default()
        }
    }

    fn mounted_at(place: &Path) -> Vec<String> {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let place = format!(" {} ", place.display());
        let at_place = table.lines().filter(|line| line.contains(&place));
        at_place.map(str::to_owned).collect()
    }

    #[test]
    fn copies_and_memory_are_bound_once_with_what_they_allow() {
        let root = tempfile::tempdir().unwrap();
        enter_mount_namespace();
        let copy = |value| ApplyVolumeRequest {
            volume_id: "config".to_owned(),
            entries: vec![entry("", 0o40755, ""), entry("key", 0o100_644, value)],
        };
        apply(&copy("one")).unwrap();
        let memory = MakeVolumeRequest {
            volume_id: "scratch".to_owned(),
            size_bytes: 1 << 20,
            root: Some(podvisor_proto::agent::v1::Ownership {
                mode: 0o777,
                ..Default::default()
            }),
            ..MakeVolumeRequest::default()
        };
        make(&memory).unwrap();
        let (config, scratch) = (root.path().join("etc/app"), root.path().join("scratch"));
        let mounts = [
            (format!("{MIRROR_DIR}/config"), &config, true),
            (format!("{MEMORY_DIR}/scratch"), &scratch, false),
        ]
        .map(|(source, target, read_only)| VolumeMount {
            source,
            target: target.display().to_string(),
            read_only,
        });
        // As by an agent that was started once more.
        for _ in 0..2 {
            assert_eq!(mount_all(&mounts), [] as [String; 0]);
            make(&memory).unwrap();
        }
        assert!(Path::new(VOLUMES_MOUNTED).exists());
        let [table] = mounted_at(&config).try_into().unwrap();
        assert!(table.contains(" ro,nosuid,nodev"), "{table}");
        let [table] = mounted_at(&scratch).try_into().unwrap();
        assert!(table.contains(" rw,nosuid,nodev") && table.contains("size=1024k"));
        let write = fs::write(config.join("new"), "").unwrap_err();
        assert_eq!(write.kind(), io::ErrorKind::ReadOnlyFilesystem);
        fs::write(scratch.join("new"), "").unwrap();
        apply(&copy("two")).unwrap();
        assert_eq!(fs::read_to_string(config.join("key")).unwrap(), "two");
        let private = fs::metadata(MIRROR_DIR).unwrap().mode() & 0o777;
        assert_eq!(private, OWN_MODE, "who may read goes by the place");
    }

    #[test]
    fn a_file_system_of_its_own_is_told_from_a_folder() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("a")).unwrap();
        assert!(!is_mounted(&root.path().join("a")).unwrap());
        assert!(is_mounted(Path::new("/proc")).unwrap());
    }
}
