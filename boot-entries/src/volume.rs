//! Volumes, and what is found on them.

use std::fmt;

use crate::tree::FileTree;

/// A mounted file system of a disk.
pub struct Volume {
    /// The device that holds it, for people: `vda1`, `vg-root`. Volumes of one device (subvolumes)
    /// share it.
    pub device: String,
    /// What GRUB calls the device: `hd0,gpt1`, `lvm/vg-root`.
    pub grub_names: Vec<String>,
    /// UUID of the file system, as udev writes it.
    pub uuid: Option<String>,
    /// Its label.
    pub label: Option<String>,
    /// UUID of the partition.
    pub partition_uuid: Option<String>,
    /// `rootflags=` that the kernel needs to mount this as its root.
    pub root_flags: Option<String>,
    /// Its files.
    pub tree: Box<dyn FileTree>,
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume")
            .field("device", &self.device)
            .field("uuid", &self.uuid)
            .finish_non_exhaustive()
    }
}

impl Volume {
    /// `root=` of a machine whose root this is. Only an initial image finds a file system by its UUID.
    #[must_use]
    pub fn root_argument(&self, has_initrd: bool) -> String {
        match (&self.uuid, &self.partition_uuid) {
            (Some(uuid), _) if has_initrd => format!("root=UUID={uuid}"),
            (_, Some(uuid)) => format!("root=PARTUUID={uuid}"),
            _ => format!("root=/dev/{}", self.device),
        }
    }
}

/// A file on one of the volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Index of the volume.
    pub volume: usize,
    /// Absolute path on it.
    pub path: String,
}

/// Where an entry comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Boot Loader Specification, type 1.
    Bls,
    /// A unified kernel image.
    Uki,
    /// GRUB's configuration.
    Grub,
    /// The configuration of extlinux or syslinux.
    Extlinux,
    /// A kernel that lies in /boot, without a configuration.
    Plain,
}

/// Something to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it comes from.
    pub origin: Origin,
    /// What its configuration calls it; unique in that configuration.
    pub id: String,
    /// What people call it.
    pub title: String,
    /// The kernel, or the image that holds all.
    pub kernel: File,
    /// Initial images, in order.
    pub initrds: Vec<File>,
    /// The kernel's command line.
    pub args: String,
}
