//! The bind mounts of a spec: what each asks for, and what a VM cannot give.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::users::UserMaps;

/// Where shared memory is, shm_overview(7).
pub const SHARED_MEMORY: &str = "/dev/shm";
/// Character devices with the same numbers everywhere (Linux, Documentation/admin-guide/devices.txt),
/// and where a guest has those that are no process's own.
pub const COMMON_DEVICES: [((u64, u64), Option<&str>); 10] = [
    ((1, 3), Some("/dev/null")),
    ((1, 5), Some("/dev/zero")),
    ((1, 7), Some("/dev/full")),
    ((1, 8), Some("/dev/random")),
    ((1, 9), Some("/dev/urandom")),
    ((5, 0), None), // tty
    ((5, 1), None), // console
    ((5, 2), None), // ptmx
    ((10, 200), Some("/dev/net/tun")),
    ((10, 229), Some("/dev/fuse")),
];
/// The source of our own bind mounts of the pod's shared memory: no path that a pod could name,
/// for those are absolute.
pub const POD_SHARED_MEMORY: &str = "podvisor-shm";
/// The folder of containerd's pods, which has a folder of each by its id (containerd,
/// `internal/cri/server/helpers.go`, `getSandboxDevShm`).
const PODS_OF_CONTAINERD: &str = "sandboxes";

/// What a container may change of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    ReadWrite,
    /// Nothing but what lies on mounts below the volume's own.
    ReadOnly,
    /// Nothing.
    RecursivelyReadOnly,
}

/// Whether mounts that are made on the host below a volume appear in the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Propagation {
    /// Those of now only (`mountPropagation: None`).
    Private,
    /// Later ones, too (`mountPropagation: HostToContainer`).
    FromHost,
}

/// How a bind mount's source comes into the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The pod's shared memory, which the guest makes anew.
    SharedMemory,
    /// What lies at a path of the host.
    Host {
        /// The path.
        path: PathBuf,
        /// What the container may change.
        access: Access,
        /// Whether later mounts appear.
        propagation: Propagation,
        /// The owners of its files, where they are others than the host's file system says.
        owners: Option<UserMaps>,
    },
}

/// A bind mount to be given a place in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindMount {
    /// Its place in the spec's list of mounts.
    pub index: usize,
    /// Where the container sees it.
    pub destination: PathBuf,
    /// Where its content comes from.
    pub source: Source,
}

/// A volume that a VM pod cannot have.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum VolumeError {
    /// It would carry mounts of the guest to the host.
    #[error(
        "mount propagation from the container to the host (Bidirectional) is not possible from \
         a VM"
    )]
    Bidirectional,
    /// Later mounts would have other owners.
    #[error(
        "mount propagation from the host (HostToContainer) is not possible where hostUsers is false"
    )]
    OwnersOfLaterMounts,
    /// A unix socket.
    #[error("{0} is a unix socket of the host, which cannot be connected to from a VM")]
    Socket(PathBuf),
    /// A named pipe.
    #[error("{0} is a named pipe of the host, which a VM cannot share")]
    Pipe(PathBuf),
    /// A block device.
    #[error("{0} is a block device of the host: a VM gets those as volumeDevices")]
    BlockDevice(PathBuf),
    /// A character device.
    #[error("{0} is a device of the host, which a VM does not have")]
    CharacterDevice(PathBuf),
    /// A place that a machine's own system has.
    #[error(
        "a volume there would hide the machine's own system: it can be mounted at a path of its own"
    )]
    SystemFolder,
}

/// Tells how a bind mount of `source` at `destination` reaches the guest.
///
/// # Errors
/// [`VolumeError::Bidirectional`], [`VolumeError::OwnersOfLaterMounts`].
pub fn classify(
    source: &Path,
    destination: &Path,
    options: &[String],
    owners: Option<UserMaps>,
) -> Result<Source, VolumeError> {
    if is_pods_memory(source, destination) {
        return Ok(Source::SharedMemory);
    }
    let has = |words: &[&str]| {
        options
            .iter()
            .any(|option| words.contains(&option.as_str()))
    };
    if has(&["shared", "rshared"]) {
        return Err(VolumeError::Bidirectional);
    }
    let access = if has(&["rro"]) {
        Access::RecursivelyReadOnly
    } else if has(&["ro"]) {
        Access::ReadOnly
    } else {
        Access::ReadWrite
    };
    let propagation = if has(&["slave", "rslave"]) {
        Propagation::FromHost
    } else {
        Propagation::Private
    };
    if propagation == Propagation::FromHost && owners.is_some() {
        return Err(VolumeError::OwnersOfLaterMounts);
    }
    Ok(Source::Host {
        path: source.to_owned(),
        access,
        propagation,
        owners,
    })
}

/// Whether what is mounted at /dev/shm is the pod's own shared memory, by our word or by containerd's, which
/// mounts `…/sandboxes/<id>/shm` where the pod has no volume. Whatever else is there is a volume.
pub fn is_pods_memory(source: &Path, destination: &Path) -> bool {
    let pods = source.ancestors().nth(2);
    let of_containerd =
        source.ends_with("shm") && pods.is_some_and(|pods| pods.ends_with(PODS_OF_CONTAINERD));
    let is_of_pod = source == Path::new(POD_SHARED_MEMORY) || of_containerd;
    is_of_pod && destination == Path::new(SHARED_MEMORY)
}

/// Where a guest has the character device of these numbers as every Linux has it, if it is such a
/// one.
pub fn guest_device(major: u64, minor: u64) -> Option<&'static str> {
    let mut common = COMMON_DEVICES.iter();
    common.find_map(|&(numbers, path)| (numbers == (major, minor)).then_some(path)?)
}

/// A part of a volume: `folder` itself for an empty `below`. Joined, that would get a slash, which
/// no file may have.
pub fn part_of(folder: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() {
        folder.to_owned()
    } else {
        folder.join(below)
    }
}

/// Whether mount options make a bind mount.
pub fn is_bind(kind: Option<&str>, options: &[String]) -> bool {
    kind == Some("bind")
        || options
            .iter()
            .any(|option| option == "bind" || option == "rbind")
}

/// Whether `folder` is one that the kubelet replaces as a whole by a rename of `..data`
/// (configMap, secret, downwardAPI, projected: kubernetes, `pkg/volume/util/atomic_writer.go`).
pub fn is_atomically_written(folder: &Path) -> bool {
    folder.join("..data").is_symlink()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classified(destination: &str, options: &[&str]) -> Result<Source, VolumeError> {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        classify(Path::new("/data"), Path::new(destination), &options, None)
    }

    fn host(access: Access, propagation: Propagation) -> Result<Source, VolumeError> {
        Ok(Source::Host {
            path: "/data".into(),
            access,
            propagation,
            owners: None,
        })
    }

    #[test]
    fn later_mounts_have_the_owners_of_their_file_system() {
        let owners = UserMaps::of_options("0:1000:10", "0:1000:10");
        let options = ["rbind".to_owned(), "rslave".to_owned()];
        let classified = classify(Path::new("/data"), Path::new("/mnt"), &options, owners);
        assert_eq!(classified, Err(VolumeError::OwnersOfLaterMounts));
    }

    #[test]
    fn the_pods_shared_memory_is_made_anew() {
        let of_containerd = "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/0a1b/shm";
        let options = ["rbind".to_owned(), "ro".to_owned()];
        let at = |source: &str, destination: &str| {
            classify(Path::new(source), Path::new(destination), &options, None).unwrap()
        };
        for source in [of_containerd, POD_SHARED_MEMORY] {
            assert_eq!(at(source, SHARED_MEMORY), Source::SharedMemory);
        }
        assert!(matches!(at(of_containerd, "/mnt"), Source::Host { .. }));
    }

    #[test]
    fn a_volume_in_place_of_shared_memory_stays_one() {
        let volume = classified("/dev/shm", &["rbind", "rprivate", "rw"]);
        assert_eq!(volume, host(Access::ReadWrite, Propagation::Private));
        for source in ["/dev/shm", "/sandboxes/shm", "/sandboxes/a/shm/b", "/shm"] {
            let at = Path::new(SHARED_MEMORY);
            assert!(!is_pods_memory(Path::new(source), at), "{source}");
        }
    }

    #[test]
    fn the_options_say_what_a_container_may_change_and_see() {
        let private = host(Access::ReadWrite, Propagation::Private);
        assert_eq!(classified("/mnt", &["rbind", "rprivate", "rw"]), private);
        let slave = host(Access::ReadOnly, Propagation::FromHost);
        assert_eq!(classified("/mnt", &["rbind", "rslave", "ro"]), slave);
        let whole = host(Access::RecursivelyReadOnly, Propagation::Private);
        assert_eq!(classified("/mnt", &["rbind", "rro"]), whole);
        let shared = classified("/mnt", &["rbind", "rshared"]);
        assert_eq!(shared, Err(VolumeError::Bidirectional));
    }

    #[test]
    fn devices_of_every_linux_are_the_guests() {
        assert_eq!(guest_device(1, 3), Some("/dev/null"));
        assert_eq!(guest_device(10, 200), Some("/dev/net/tun"));
        assert_eq!(guest_device(10, 229), Some("/dev/fuse"));
        // A terminal, a disk of old, KVM.
        for (major, minor) in [(5, 0), (8, 0), (10, 232)] {
            assert_eq!(guest_device(major, minor), None);
        }
    }

    #[test]
    fn all_of_a_volume_has_no_slash_at_its_end() {
        assert_eq!(
            part_of(Path::new("/file"), Path::new("")).as_os_str(),
            "/file"
        );
        assert_eq!(part_of(Path::new("/a"), Path::new("b")), Path::new("/a/b"));
    }

    #[test]
    fn a_folder_with_a_data_link_is_written_atomically() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_atomically_written(folder.path()));
        std::os::unix::fs::symlink("..2026", folder.path().join("..data")).unwrap();
        assert!(is_atomically_written(folder.path()));
    }
}
