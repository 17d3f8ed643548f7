//! What a container boots when it is a machine: told from its spec and its root file system.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use thiserror::Error;

use super::image::{ImageDisk, ImageError};
use crate::host::DiskRequest;
use crate::pod::{block_devices, volume};

/// Where a container sees its machine's disk when that is a volume with a file system, and where an
/// image keeps its disk (KubeVirt's containerDisk).
pub const DISK_FOLDER: &str = "/disk";
/// The device path of a block volume that is the machine's disk.
const DISK_DEVICE: &str = "/";
/// Where trees have the program that runs them.
const INITS: [&str; 3] = ["sbin/init", "usr/sbin/init", "usr/lib/systemd/systemd"];
/// Where trees have their kernel: in one of these folders, or in one of the folders in the last.
const KERNEL_FOLDER: &str = "boot";
const MODULES_FOLDER: &str = "usr/lib/modules";
const KERNEL_PREFIX: &str = "vmlinuz";

/// Which kind of container one is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// What it brings tells.
    #[default]
    Told,
    /// A machine.
    Machine,
}

/// What a machine boots.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// A disk that outlives the pod; while it is empty it is filled from the image's.
    Volume(Volume, Option<ImageDisk>),
    /// The image's disk; what is written is gone with the machine.
    Image(ImageDisk),
    /// The root file system itself, with the kernel in it.
    Tree,
}

/// A volume that is a machine's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Volume {
    /// A block device.
    Block(DiskRequest),
    /// A folder for the disk's file.
    Folder {
        /// The folder on the host.
        path: PathBuf,
        /// Whether the pod may not write to it.
        read_only: bool,
    },
}

/// Why a container is no machine although it is to be one.
#[derive(Debug, Error)]
pub enum SourceError {
    /// There is nothing to boot.
    #[error(
        "nothing here is a machine's disk: no block volume with devicePath /, no volume mounted at \
         /disk, no file in the image's /disk, and its root file system {missing}"
    )]
    Nothing {
        /// What a tree would need.
        missing: &'static str,
    },
    /// The image's disk cannot be used.
    #[error("the image's disk")]
    Image(#[from] ImageError),
}

impl Source {
    /// What the container of `spec` with its root file system at `root` boots; None for an ordinary
    /// container.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn find(spec: &Spec, root: &Path, kind: Kind) -> Result<Option<Self>, SourceError> {
        let volume = block_volume(spec).or_else(|| folder_volume(spec));
        let must = kind == Kind::Machine || volume.is_some();
        let image = ImageDisk::find(root, must)?;
        match (volume, image) {
            (Some(volume), image) => {
                let holds = image.is_some() || holds_disk(&volume) || kind == Kind::Machine;
                Ok(holds.then_some(Self::Volume(volume, image)))
            }
            (None, Some(image)) => Ok(Some(Self::Image(image))),
            (None, None) => match (missing_of_tree(root), kind) {
                (None, _) => Ok(Some(Self::Tree)),
                (Some(_), Kind::Told) => Ok(None),
                (Some(missing), Kind::Machine) => Err(SourceError::Nothing { missing }),
            },
        }
    }
}

/// The block device of a container at `/`, where none could be used as one.
fn block_volume(spec: &Spec) -> Option<Volume> {
    let linux = spec.linux().as_ref()?;
    let devices = linux.devices().as_deref()?;
    let blocks = block_devices::of(linux);
    let block = blocks.iter().find(|block| {
        devices
            .get(block.index)
            .is_some_and(|device| device.path() == Path::new(DISK_DEVICE))
    })?;
    Some(Volume::Block(block.disk))
}

/// The bind mount at `/disk`.
fn folder_volume(spec: &Spec) -> Option<Volume> {
    let mounts = spec.mounts().as_deref()?;
    let mount = mounts
        .iter()
        .find(|mount| mount.destination() == Path::new(DISK_FOLDER))?;
    let options = mount.options().clone().unwrap_or_default();
    if !volume::is_bind(mount.typ().as_deref(), &options) {
        return None;
    }
    let path = mount.source().clone()?;
    let read_only = options.iter().any(|option| option == "ro");
    Some(Volume::Folder { path, read_only })
}

/// Whether a volume is a machine's disk by itself: a folder is one when the disk's file is in it.
fn holds_disk(volume: &Volume) -> bool {
    match volume {
        Volume::Block(_) => true,
        Volume::Folder { path, .. } => path
            .join(super::store::DISK_FILE)
            .symlink_metadata()
            .is_ok_and(|metadata| metadata.is_file()),
    }
}

/// What a root file system lacks to be a machine; None when it lacks nothing. Names only are looked
/// at: links in a tree mean nothing outside of it.
fn missing_of_tree(root: &Path) -> Option<&'static str> {
    let has_init = INITS
        .iter()
        .any(|init| root.join(init).symlink_metadata().is_ok());
    let has_kernel = || {
        let modules = super::image::entries(root, MODULES_FOLDER);
        let folders = modules
            .iter()
            .map(|version| format!("{MODULES_FOLDER}/{version}"));
        std::iter::once(KERNEL_FOLDER.to_owned())
            .chain(folders)
            .any(|folder| {
                let names = super::image::entries(root, &folder);
                names.iter().any(|name| name.starts_with(KERNEL_PREFIX))
            })
    };
    match (has_init, has_init && has_kernel()) {
        (false, _) => Some("has no init"),
        (true, false) => Some("has no kernel in /boot or /usr/lib/modules"),
        (true, true) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(&format!(r#"{{"ociVersion":"1.1.0"{json}}}"#)).unwrap()
    }

    fn root(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, [0; 4096]).unwrap();
        }
        root
    }

    fn find(json: &str, files: &[&str], kind: Kind) -> Result<Option<Source>, SourceError> {
        let root = root(files);
        Source::find(&spec(json), root.path(), kind)
    }

    #[test]
    fn an_ordinary_container_is_no_machine() {
        assert_eq!(find("", &["bin/sh"], Kind::Told).unwrap(), None);
        let error = find("", &["bin/sh"], Kind::Machine).unwrap_err();
        assert!(error.to_string().contains("has no init"), "{error}");
        let error = find("", &["sbin/init"], Kind::Machine).unwrap_err();
        assert!(error.to_string().contains("has no kernel"), "{error}");
    }

    #[test]
    fn a_tree_with_kernel_and_init_is_one() {
        for kernel in ["boot/vmlinuz-6.12", "usr/lib/modules/6.12/vmlinuz"] {
            let found = find("", &["sbin/init", kernel], Kind::Told).unwrap();
            assert_eq!(found, Some(Source::Tree));
        }
    }

    #[test]
    fn an_images_disk_is_one() {
        let found = find("", &["disk/debian.qcow2"], Kind::Told).unwrap();
        assert!(matches!(found, Some(Source::Image(_))), "{found:?}");
    }

    #[test]
    fn a_block_volume_at_the_root_is_one() {
        let device = r#","linux":{"devices":[{"path":"/","type":"b","major":7,"minor":3}],
            "resources":{"devices":[{"allow":true,"type":"b","major":7,"minor":3,"access":"rw"}]}}"#;
        let found = find(device, &[], Kind::Told).unwrap();
        let disk = DiskRequest {
            major: 7,
            minor: 3,
            read_only: false,
        };
        assert_eq!(found, Some(Source::Volume(Volume::Block(disk), None)));
    }

    #[test]
    fn a_folder_is_one_with_a_disk_in_it_or_one_to_fill_it_from() {
        let folder = root(&[]);
        let mounted = format!(
            r#","mounts":[{{"destination":"/disk","type":"bind","source":"{}","options":["rbind"]}}]"#,
            folder.path().display()
        );
        assert_eq!(find(&mounted, &[], Kind::Told).unwrap(), None);
        let filled = find(&mounted, &["disk/a.raw"], Kind::Told).unwrap();
        assert!(matches!(filled, Some(Source::Volume(_, Some(_)))));
        fs::write(folder.path().join("disk.img"), "x").unwrap();
        let found = find(&mounted, &[], Kind::Told).unwrap();
        assert!(matches!(found, Some(Source::Volume(_, None))));
    }
}
