//! The bind mounts of a spec: how each reaches the guest.

use std::path::{Path, PathBuf};

/// How a bind mount's source comes into the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The pod's shared memory, which the guest makes anew.
    SharedMemory,
    /// A folder or file of the host, exported through virtio-fs.
    Export {
        /// Its path on the host.
        path: PathBuf,
        /// Whether the guest may only read it.
        read_only: bool,
    },
}

/// A bind mount to be given a place in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindMount {
    /// Its place in the spec's list of mounts.
    pub index: usize,
    /// Where its content comes from.
    pub source: Source,
}

/// Tells how a bind mount of `source` at `destination` reaches the guest.
pub fn classify(source: &Path, destination: &Path, options: &[String]) -> Source {
    if destination == Path::new("/dev/shm") {
        return Source::SharedMemory;
    }
    let read_only = options
        .iter()
        .any(|option| option == "ro" || option == "rro");
    Source::Export {
        path: source.to_owned(),
        read_only,
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

    #[test]
    fn the_pods_shared_memory_is_made_anew_and_the_rest_exported() {
        let options = ["rbind".to_owned(), "ro".to_owned()];
        assert_eq!(
            classify(
                Path::new("/run/sandbox/shm"),
                Path::new("/dev/shm"),
                &options
            ),
            Source::SharedMemory
        );
        assert_eq!(
            classify(Path::new("/data"), Path::new("/mnt"), &options),
            Source::Export {
                path: "/data".into(),
                read_only: true
            }
        );
    }

    #[test]
    fn a_folder_with_a_data_link_is_written_atomically() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_atomically_written(folder.path()));
        std::os::unix::fs::symlink("..2026", folder.path().join("..data")).unwrap();
        assert!(is_atomically_written(folder.path()));
    }
}
