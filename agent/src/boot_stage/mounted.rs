//! The volumes of a disk, mounted to be read.

use std::ffi::CStr;
use std::io;
use std::path::{Path, PathBuf};

use podvisor_boot_entries::partitions::Table;
use podvisor_boot_entries::superblock::{Content, FileSystem};
use podvisor_boot_entries::{FileKind, FileTree as _, Volume};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::block::BlockDevice;
use super::device_mapper::DeviceMapper;
use super::kernel_modules::KernelModules;
use super::logical::Groups;
use super::tree::Tree;
use super::{BootStageError, step};

/// Where volumes are mounted, one folder each.
const VOLUMES: &str = "/run/volumes";
/// Nothing of a volume is executed, and nothing of it is trusted.
const FLAGS: MountFlags = MountFlags::RDONLY
    .union(MountFlags::NOSUID)
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);
/// Partitions and volumes of a disk that are looked at.
const MAX_DEVICES: usize = 128;
/// Subvolumes that distributions have their root in, where it is not the default one.
const SUBVOLUMES: &[&str] = &["@", "@rootfs", "root"];

/// The volumes of a disk. They are unmounted when this goes.
#[derive(Debug, Default)]
pub struct Mounted {
    /// The volumes.
    pub volumes: Vec<Volume>,
    /// Their files, of the same index.
    pub trees: Vec<Tree>,
    /// What the disk holds, in words.
    pub contents: Vec<String>,
    mounts: Vec<PathBuf>,
    mapper: Option<DeviceMapper>,
    mapped: Vec<String>,
}

/// A device that may hold a file system.
struct Candidate {
    device: BlockDevice,
    /// For people, and for the kernel's `root=`.
    name: String,
    grub_names: Vec<String>,
    partition_uuid: Option<String>,
}

impl Mounted {
    /// Mounts all that can be mounted of a disk; `index` is GRUB's number of it.
    ///
    /// # Errors
    ///
    /// [`BootStageError`] for what no disk is to blame for.
    pub fn all_of(
        disk: &BlockDevice,
        index: usize,
        modules: &mut KernelModules,
    ) -> Result<Self, BootStageError> {
        let mut mounted = Self::default();
        let failed = || format!("read disk {}", disk.name);
        let table = disk.table().map_err(step(failed()))?;
        let partitions = disk.partitions().map_err(step(failed()))?;
        let candidates = if partitions.is_empty() {
            vec![Candidate {
                device: disk.clone(),
                name: disk.name.clone(),
                grub_names: vec![format!("hd{index}")],
                partition_uuid: None,
            }]
        } else {
            mounted.contents.push(table.to_string());
            partitions
                .iter()
                .take(MAX_DEVICES)
                .map(|partition| candidate(disk, index, &table, partition))
                .collect()
        };
        let mut groups = Groups::default();
        let mut has_groups = false;
        for candidate in candidates {
            has_groups |= mounted.take(candidate, modules, &mut groups)?;
        }
        if has_groups {
            mounted.take_logical(&groups, modules)?;
        }
        Ok(mounted)
    }

    /// Looks at a device and mounts it; true when it is a part of an LVM group.
    fn take(
        &mut self,
        candidate: Candidate,
        modules: &mut KernelModules,
        groups: &mut Groups,
    ) -> Result<bool, BootStageError> {
        let name = candidate.name.clone();
        let content = match candidate.device.content() {
            Ok(content) => content,
            Err(error) => {
                self.contents
                    .push(format!("{name} cannot be read: {error}"));
                return Ok(false);
            }
        };
        match &content {
            Content::FileSystem { kind, uuid, label } => {
                self.contents.push(format!("{name} is {content}"));
                let (kind, uuid, label) = (*kind, uuid.clone(), label.clone());
                self.mount(candidate, kind, uuid, label, modules)?;
            }
            Content::LvmVolume => {
                self.contents.push(format!("{name} is an {content}"));
                match groups.add(&candidate.device) {
                    Ok(()) => return Ok(true),
                    Err(why) => self.contents.push(format!("{name}: {why}")),
                }
            }
            Content::Empty | Content::Unknown if candidate.device.partition.is_none() => {
                let what = "no partition table and no file system";
                let found = if content == Content::Empty {
                    "nothing at its beginning"
                } else {
                    "nothing that is known"
                };
                self.contents.push(format!("{what}: {found}"));
            }
            Content::Other(_) | Content::Empty | Content::Unknown => {
                self.contents.push(format!("{name} is {content}"));
            }
        }
        Ok(false)
    }

    fn take_logical(
        &mut self,
        groups: &Groups,
        modules: &mut KernelModules,
    ) -> Result<(), BootStageError> {
        modules.load("dm_mod")?;
        let mapper = DeviceMapper::open().map_err(step("open the device mapper"))?;
        let logical = groups.activate(&mapper, &mut self.contents);
        self.mapper = Some(mapper);
        for logical in logical {
            self.mapped.push(logical.name.clone());
            let candidate = Candidate {
                device: logical.device,
                name: format!("mapper/{}", logical.name),
                grub_names: logical.grub_names,
                partition_uuid: None,
            };
            self.take(candidate, modules, &mut Groups::default())?;
        }
        Ok(())
    }

    /// Mounts a file system and adds its volumes.
    fn mount(
        &mut self,
        candidate: Candidate,
        kind: FileSystem,
        uuid: Option<String>,
        label: Option<String>,
        modules: &mut KernelModules,
    ) -> Result<(), BootStageError> {
        for module in needed(kind) {
            modules.load(module)?;
        }
        let volume = |tree: &Tree, root_flags: Option<String>| Volume {
            device: candidate.name.clone(),
            grub_names: candidate.grub_names.clone(),
            uuid: uuid.clone(),
            label: label.clone(),
            partition_uuid: candidate.partition_uuid.clone(),
            root_flags,
            tree: Box::new(tree.clone()),
        };
        let device = &candidate.device;
        let main = match self.mount_at(device, kind, options(kind)) {
            Ok(path) => path,
            Err(error) => {
                let name = &candidate.name;
                self.contents
                    .push(format!("{name} cannot be mounted: {error}"));
                return Ok(());
            }
        };
        let tree = Tree::open(&main).map_err(step("open a volume"))?;
        self.volumes.push(volume(&tree, None));
        self.trees.push(tree);
        if kind != FileSystem::Btrfs {
            return Ok(());
        }
        // The volumes of one btrfs: the default subvolume, that of all, and known ones in it.
        let top = match self.mount_at(device, kind, c"rescue=nologreplay,subvolid=5") {
            Ok(path) => path,
            Err(_) => return Ok(()),
        };
        let tree = Tree::open(&top).map_err(step("open a volume"))?;
        let found = SUBVOLUMES
            .iter()
            .filter(|name| tree.kind(&format!("/{name}")) == Some(FileKind::Folder));
        let found: Vec<&&str> = found.collect();
        self.volumes
            .push(volume(&tree, Some("subvolid=5".to_owned())));
        self.trees.push(tree);
        for name in found {
            let tree = Tree::open(&top.join(name)).map_err(step("open a subvolume"))?;
            self.volumes
                .push(volume(&tree, Some(format!("subvol={name}"))));
            self.trees.push(tree);
        }
        Ok(())
    }

    fn mount_at(
        &mut self,
        device: &BlockDevice,
        kind: FileSystem,
        options: &CStr,
    ) -> io::Result<PathBuf> {
        let path = Path::new(VOLUMES).join(self.mounts.len().to_string());
        std::fs::create_dir_all(&path)?;
        mount(device.node(), &path, kind.name(), FLAGS, options)?;
        self.mounts.push(path.clone());
        Ok(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.volumes.clear();
        self.trees.clear();
        for path in self.mounts.drain(..).rev() {
            if let Err(errno) = unmount(&path, UnmountFlags::empty()) {
                tracing::warn!(path = %path.display(), %errno, "a volume cannot be unmounted");
            }
        }
        for name in self.mapped.drain(..).rev() {
            let removed = self.mapper.as_ref().map(|mapper| mapper.remove(&name));
            if let Some(Err(error)) = removed {
                tracing::warn!(name, %error, "an LVM volume cannot be removed");
            }
        }
    }
}

fn candidate(
    disk: &BlockDevice,
    index: usize,
    table: &Table,
    partition: &BlockDevice,
) -> Candidate {
    let number = partition.partition.unwrap_or_default();
    let kind = table.grub_name();
    Candidate {
        name: partition.name.clone(),
        grub_names: vec![
            format!("hd{index},{kind}{number}"),
            format!("hd{index},{number}"),
        ],
        partition_uuid: table.partition_uuid(number, &|offset, len| disk.read(offset, len)),
        device: partition.clone(),
    }
}

/// Modules that a file system needs; ext4 is built in.
fn needed(kind: FileSystem) -> &'static [&'static str] {
    match kind {
        FileSystem::Ext4 => &[],
        FileSystem::Xfs => &["xfs"],
        FileSystem::Btrfs => &["btrfs"],
        FileSystem::Vfat => &["vfat", "nls_cp437", "nls_iso8859_1"],
    }
}

/// Mount options: no journal is replayed, for that would write.
fn options(kind: FileSystem) -> &'static CStr {
    match kind {
        FileSystem::Ext4 => c"noload",
        FileSystem::Xfs => c"norecovery,nouuid",
        FileSystem::Btrfs => c"rescue=nologreplay",
        FileSystem::Vfat => c"codepage=437,iocharset=iso8859-1,utf8",
    }
}
