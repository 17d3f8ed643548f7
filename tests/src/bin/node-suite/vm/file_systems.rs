//! Machines on every file system that the boot stage reads, laid out as distributions do.

use std::path::Path;

use anyhow::{Context as _, Result};
use podvisor_proto::agent::v1::BootMachineResponse;
use tempfile::TempDir;

use super::boot_disk::{self, Layout, UUID};
use super::boot_partitions::{self, ESP, LINUX, LVM, partition_uuid};
use super::boot_stage::{boots_disk, response};
use super::volume_group::VolumeGroup;
use super::{boot_images, long};
use crate::case::Case;

/// UUID of a boot partition's file system.
const BOOT_UUID: &str = "0b0e7d15-0000-4000-8000-000000000002";

pub fn cases() -> Vec<Case> {
    vec![
        long("vm_machine_boots_from_every_file_system", file_systems),
        long("vm_machine_boots_from_a_logical_volume", lvm),
    ]
}

/// As grub-mkconfig of Debian and Ubuntu writes it, shortened.
const GRUB_ON_BTRFS: &str = "
set default=\"0\"
menuentry 'On btrfs' --class os --id 'btrfs' {
	insmod part_gpt
	insmod btrfs
	search --no-floppy --fs-uuid --set=root THE_ROOT
	linux	/@/boot/vmlinuz-6 root=UUID=THE_ROOT ro rootflags=subvol=@ layout=btrfs
	initrd	/@/boot/modules.img-6 /@/boot/initrd.img-6
}
";
const GRUB_ON_LVM: &str = "
set default=\"0\"
menuentry 'On LVM' --class os --id 'lvm' {
	insmod part_gpt
	insmod lvm
	insmod ext2
	set root='THE_ROOT'
	linux	/boot/vmlinuz-6 root=/dev/mapper/vg-root ro layout=lvm
	initrd	/boot/initrd.img-6
}
";
const LOADER_CONF: &[u8] = b"timeout 3\ndefault 0123-6.12.1*\n";
/// As kernel-install writes it.
const LOADER_ENTRY: &str = "title      The VERSION
version    VERSION
machine-id 0123
sort-key   test
options    root=PARTUUID=THE_ROOT ro layout=VERSION
linux      /0123/VERSION/linux
";
/// Leads from the EFI system partition to the boot partition, as Fedora's does.
const STUB: &str = "search --no-floppy --root-dev-only --fs-uuid --set=dev THE_BOOT
set prefix=($dev)/grub2
export $prefix
configfile $prefix/grub.cfg
";
/// As grub2-mkconfig of Fedora writes it, shortened.
const FEDORA_GRUB: &str = "
if [ -s $prefix/grubenv ]; then load_env; fi
set default=\"${saved_entry}\"
insmod part_gpt
insmod ext2
search --no-floppy --fs-uuid --set=root THE_BOOT
insmod blscfg
blscfg
";
const FEDORA_ENTRY: &str = "title Fedora (VERSION)
version VERSION
linux /vmlinuz-6
initrd /initramfs-6.img $tuned_initrd
options $kernelopts layout=VERSION
grub_users $grub_users
grub_class fedora
";
const FEDORA_ENV: &str = "# GRUB Environment Block
saved_entry=0123-6.12.1
kernelopts=root=UUID=THE_ROOT ro rootflags=subvol=root
##########";
const KERNEL: &str = "/boot/vmlinuz-6";
const INITRD: &str = "/boot/initrd.img-6";

fn file_systems() -> Result<()> {
    xfs().context("XFS")?;
    btrfs().context("btrfs")?;
    systemd_boot().context("systemd-boot on VFAT")?;
    fedora().context("Fedora's boot partition")
}

/// Room for disks: /tmp is memory.
fn room() -> Result<TempDir> {
    Ok(tempfile::tempdir_in("/var/tmp")?)
}

/// One partition, a kernel without a configuration.
fn xfs() -> Result<()> {
    let folder = room()?;
    let tree = folder.path().join("tree");
    let initrd = [boot_images::modules("xfs")?, boot_images::mounts_root()?].concat();
    let layout = Layout {
        files: &[("boot/initrd.img-6", &initrd)],
        ..Layout::default()
    };
    boot_disk::write_tree(&tree, &layout)?;
    let root = boot_partitions::xfs(folder.path(), &tree)?;
    let disk = boot_partitions::disk(folder.path(), &[(LINUX, &root)])?;
    let args = format!("root=UUID={UUID} ro");
    let expected = BootMachineResponse {
        initrds: vec![INITRD.to_owned()],
        ..response(KERNEL, KERNEL, KERNEL, &args)
    };
    boots_disk(&disk, &expected)
}

/// The root is a subvolume that is not the default one; two initial images.
fn btrfs() -> Result<()> {
    let folder = room()?;
    let tree = folder.path().join("tree");
    let (modules, initrd) = (boot_images::modules("btrfs")?, boot_images::mounts_root()?);
    let config = GRUB_ON_BTRFS.replace("THE_ROOT", UUID);
    let layout = Layout {
        files: &[
            ("boot/grub/grub.cfg", config.as_bytes()),
            ("boot/modules.img-6", &modules),
            ("boot/initrd.img-6", &initrd),
        ],
        ..Layout::default()
    };
    boot_disk::write_tree(&tree.join("@"), &layout)?;
    let root = boot_partitions::btrfs(folder.path(), &tree, "@")?;
    let disk = boot_partitions::disk(folder.path(), &[(LINUX, &root)])?;
    let args = format!("root=UUID={UUID} ro rootflags=subvol=@ layout=btrfs");
    let initrds = ["/@/boot/modules.img-6", "/@/boot/initrd.img-6"];
    let expected = BootMachineResponse {
        initrds: initrds.map(str::to_owned).to_vec(),
        ..response("btrfs", "On btrfs", "/@/boot/vmlinuz-6", &args)
    };
    boots_disk(&disk, &expected)
}

/// Kernels on the EFI system partition; loader.conf names the one that is not the newest. The kernel
/// finds its root without an initial image.
fn systemd_boot() -> Result<()> {
    let folder = room()?;
    let (esp, tree) = (folder.path().join("esp"), folder.path().join("tree"));
    let kernel = boot_disk::bzimage()?;
    let root_id = partition_uuid(2);
    let entry = LOADER_ENTRY.replace("THE_ROOT", &root_id);
    let (older, newer) = (versioned(&entry, "6.12.1"), versioned(&entry, "6.13.0"));
    boot_disk::write_files(
        &esp,
        &[
            ("loader/loader.conf", LOADER_CONF),
            ("loader/entries/0123-6.12.1.conf", older.as_bytes()),
            ("loader/entries/0123-6.13.0.conf", newer.as_bytes()),
            ("0123/6.12.1/linux", &kernel),
            ("0123/6.13.0/linux", &kernel),
        ],
    )?;
    write_root(&tree)?;
    let esp = boot_partitions::vfat(folder.path(), &esp)?;
    let root = boot_partitions::ext4(folder.path(), &tree, "root", UUID)?;
    let disk = boot_partitions::disk(folder.path(), &[(ESP, &esp), (LINUX, &root)])?;
    let args = format!("root=PARTUUID={root_id} ro layout=6.12.1");
    let kernel = "/0123/6.12.1/linux";
    let expected = BootMachineResponse {
        volume: "vda1 (ESP)".to_owned(),
        ..response("0123-6.12.1", "The 6.12.1", kernel, &args)
    };
    boots_disk(&disk, &expected)
}

/// The EFI system partition leads to a boot partition, whose GRUB takes entries of the Boot Loader
/// Specification; the root is a subvolume of a btrfs.
fn fedora() -> Result<()> {
    let folder = room()?;
    let [esp, boot, tree] = ["esp", "boot-tree", "tree"].map(|name| folder.path().join(name));
    let stub = STUB.replace("THE_BOOT", BOOT_UUID);
    boot_disk::write_files(&esp, &[("EFI/fedora/grub.cfg", stub.as_bytes())])?;
    let config = FEDORA_GRUB.replace("THE_BOOT", BOOT_UUID);
    let saved = FEDORA_ENV.replace("THE_ROOT", UUID);
    let initrd = [boot_images::modules("btrfs")?, boot_images::mounts_root()?].concat();
    let older = versioned(FEDORA_ENTRY, "6.12.1");
    let newer = versioned(FEDORA_ENTRY, "6.13.0");
    boot_disk::write_files(
        &boot,
        &[
            ("grub2/grub.cfg", config.as_bytes()),
            ("grub2/grubenv", saved.as_bytes()),
            ("loader/entries/0123-6.12.1.conf", older.as_bytes()),
            ("loader/entries/0123-6.13.0.conf", newer.as_bytes()),
            ("vmlinuz-6", &boot_disk::bzimage()?),
            ("initramfs-6.img", &initrd),
        ],
    )?;
    write_root(&tree.join("root"))?;
    let esp = boot_partitions::vfat(folder.path(), &esp)?;
    let boot = boot_partitions::ext4(folder.path(), &boot, "boot", BOOT_UUID)?;
    let root = boot_partitions::btrfs(folder.path(), &tree, "root")?;
    let partitions = [(ESP, &*esp), (LINUX, &*boot), (LINUX, &*root)];
    let disk = boot_partitions::disk(folder.path(), &partitions)?;
    let args = format!("root=UUID={UUID} ro rootflags=subvol=root layout=6.12.1");
    let expected = BootMachineResponse {
        volume: "vda2 (boot)".to_owned(),
        initrds: vec!["/initramfs-6.img".to_owned()],
        ..response("0123-6.12.1", "Fedora (6.12.1)", "/vmlinuz-6", &args)
    };
    boots_disk(&disk, &expected)
}

/// Everything is on a logical volume, which GRUB knows by its identifiers. To mount it would take LVM's
/// own tools: the initial image is all that the machine is.
fn lvm() -> Result<()> {
    let folder = room()?;
    let tree = folder.path().join("tree");
    let group = VolumeGroup::new()?;
    let config = GRUB_ON_LVM.replace("THE_ROOT", &group.grub_name()?);
    let layout = Layout {
        files: &[
            ("boot/grub/grub.cfg", config.as_bytes()),
            ("boot/initrd.img-6", &boot_images::says_command_line()?),
        ],
        ..Layout::default()
    };
    boot_disk::write_tree(&tree, &layout)?;
    let volume = group.fill(&tree)?;
    let disk = boot_partitions::disk(folder.path(), &[(LVM, volume)])?;
    let args = "root=/dev/mapper/vg-root ro layout=lvm";
    let expected = BootMachineResponse {
        volume: "mapper/vg-root (root)".to_owned(),
        initrds: vec![INITRD.to_owned()],
        ..response("lvm", "On LVM", KERNEL, args)
    };
    boots_disk(&disk, &expected)
}

fn versioned(entry: &str, version: &str) -> String {
    entry.replace("VERSION", version)
}

/// A root whose kernel is elsewhere.
fn write_root(tree: &Path) -> Result<()> {
    let layout = Layout {
        without_kernel: true,
        ..Layout::default()
    };
    boot_disk::write_tree(tree, &layout)
}
