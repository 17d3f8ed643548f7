//! The Debian machine: systemd, cloud-init, sshd and Debian's own kernel, as GRUB boots it.
//!
//! The kernel is the flavour for clouds: the same sources, without drivers for real hardware. It has what a machine pod's devices need:
//! virtio (block, network, console, balloon, memory, random numbers, sockets, file system), the i6300ESB watchdog, pvpanic, DMI, the
//! VM generation ID, the ACPI button, NUMA and hot-plug. It has no 9p and no graphics.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::disk::{self, Root};
use super::qcow2;
use crate::images::layout;
use crate::node::debian;
use crate::progress::Step;
use crate::workspace;

/// What the machine is made of beyond a minimal Debian.
const PACKAGES: &[&str] = &[
    "cloud-init",
    "dbus",
    "e2fsprogs",
    "grub-pc-bin",
    "grub2-common",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "linux-image-cloud-amd64",
    "netplan.io",
    "openssh-server",
    "procps",
    "sudo",
    "systemd-sysv",
    "udev",
];
/// The hooks of mmdebstrap that make a machine of it.
pub const HOOKS: [(&str, &str); 2] = [
    ("--essential-hook", "machine/debian-initramfs.sh"),
    ("--customize-hook", "machine/debian-machine.sh"),
];

const DISK_LEN: u64 = 3 << 30;
/// The user and group that KubeVirt's containerDisks belong to: its QEMU's.
const DISK_OWNER: u32 = 107;

/// The image that holds the disk, as KubeVirt packs it.
const DISK_IMAGE: &str = "docker.io/podvisor/debian-machine:13";
/// The image that is the machine's tree.
const TREE_IMAGE: &str = "docker.io/podvisor/debian-tree:13";

/// Writes the layouts of both images below `folder`.
///
/// # Errors
/// Packages cannot be fetched, or a tool fails.
pub fn build(folder: &Path) -> Result<()> {
    let step = Step::start("Debian machine (minutes)");
    let work = tempfile::tempdir_in(folder)?;
    let tree = work.path().join("tree");
    fs::create_dir(&tree)?;
    fs::set_permissions(&tree, fs::Permissions::from_mode(0o755))?;
    write_tree(&step, &tree)?;
    write_tree_image(&step, &tree, &work.path().join("layer.tar"), folder)?;
    write_disk_image(&step, &tree, work.path(), folder)?;
    step.done();
    Ok(())
}

fn write_tree(step: &Step, tree: &Path) -> Result<()> {
    let hooks =
        HOOKS.map(|(hook, file)| format!("{hook}={}", workspace::xtask_file(file).display()));
    debian::write_root_with(step, debian::STABLE, PACKAGES, &hooks, tree)
}

fn write_tree_image(step: &Step, tree: &Path, layer: &Path, folder: &Path) -> Result<()> {
    step.detail("the tree's image");
    disk::pack(step, tree, None, layer)?;
    let command = ["/sbin/init".to_owned()];
    layout::write(
        &folder.join("debian-tree"),
        layer,
        &[TREE_IMAGE.to_owned()],
        &command,
    )
}

/// The disk's tree is the image's but for what names the disk.
fn write_disk_image(step: &Step, tree: &Path, work: &Path, folder: &Path) -> Result<()> {
    step.detail("the disk");
    let uuid = fs::read_to_string(tree.join("boot/grub/root-uuid"))
        .context("the tree names no file system")?;
    let uuid = uuid.trim();
    let mount = format!("UUID={uuid} / ext4 rw,discard,errors=remount-ro 0 1\n");
    fs::write(tree.join("etc/fstab"), mount)?;
    let root = Root {
        tree,
        label: "debian-root",
        uuid,
    };
    let raw = work.join("debian.raw");
    disk::write_gpt_with_grub(step, &root, DISK_LEN, &raw)?;
    let packed = work.join("packed");
    fs::create_dir_all(packed.join("disk"))?;
    qcow2::write(&raw, &packed.join("disk/debian.qcow2"))?;
    let layer = work.join("disk.tar");
    disk::pack(step, &packed, Some(DISK_OWNER), &layer)?;
    // As KubeVirt's are: from scratch, with nothing to run.
    let image = folder.join("debian-machine");
    layout::write(&image, &layer, &[DISK_IMAGE.to_owned()], &[])
}
