//! The node's cached parts: Debian's kernel with an initial image of ours, and one root file system per containerd version.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::containerd::Containerd;
use super::debian;
use crate::cache::{self, Key};
use crate::cpio::Archive;
use crate::process::{self, system_tool};
use crate::progress::Step;
use crate::workspace;

/// Folders of the kernel's modules that a node uses; the rest (drivers of real hardware, mostly) stays out of its memory.
const MODULE_FOLDERS: &[&str] = &[
    "arch/x86",
    "crypto",
    "drivers/block",
    "drivers/char/hw_random",
    "drivers/crypto/ccp",
    "drivers/net",
    "drivers/vhost",
    "drivers/virtio",
    "fs",
    "lib",
    "net",
    "virt",
];

/// Parts of those that are large and of no use here.
const MODULE_FOLDERS_LEFT_OUT: &[&str] = &[
    "drivers/net/ethernet",
    "drivers/net/wireless",
    "drivers/net/usb",
    "drivers/net/can",
    "drivers/net/wwan",
    "fs/ocfs2",
    "fs/smb",
    "fs/ceph",
    "fs/gfs2",
    "net/mac80211",
    "net/bluetooth",
    "net/wireless",
];

/// Packages of the node beyond a minimal Debian.
const PACKAGES: &[&str] = &[
    "apparmor",
    // With it, dosfstools, fdisk, lvm2, mtools and xfsprogs tests make disks as machines have them.
    "btrfs-progs",
    "busybox-static",
    "ca-certificates",
    "containerd",
    "containernetworking-plugins",
    "curl",
    "dosfstools",
    "e2fsprogs",
    "fdisk",
    "iproute2",
    "iptables",
    "iputils-ping",
    "jq",
    "kmod",
    "lvm2",
    "mtools",
    "nftables",
    "openssh-client",
    "procps",
    // An agent that machines bring themselves.
    "qemu-guest-agent",
    // What machine pods are compared with, and an independent writer of disk images for their tests.
    "qemu-system-x86",
    "qemu-utils",
    "runc",
    "socat",
    "strace",
    // With it the CRI validation suite loads AppArmor profiles.
    "sudo",
    "xfsprogs",
];

/// Modules that the initial image loads: what it takes to mount the root and the shared folder. The node's init.sh loads the others.
const INITRD_MODULES: &[&str] = &["virtio_blk", "erofs", "overlay", "9pnet_virtio", "9p"];

/// `vmlinuz`, `initrd` and `modules.erofs` of the node.
///
/// # Errors
/// The kernel package cannot be fetched or unpacked.
pub fn kernel() -> Result<PathBuf> {
    let key = Key::new()
        .file(&workspace::xtask_file("src/node/machine.rs"))?
        .file(&workspace::xtask_file("node/initrd-init.sh"))?;
    cache::get_or_build("node-kernel", key, |folder| {
        let step = Step::start("node kernel");
        let work = tempfile::tempdir()?;
        let unpacked = work.path().join("kernel");
        fs::create_dir(&unpacked)?;
        let package = debian::package_behind(debian::STABLE, "linux-image-amd64")?;
        debian::unpack(&step, debian::STABLE, &package, &unpacked)?;
        let modules = work.path().join("modules");
        let version = copy_modules(&step, &unpacked, &modules)?;
        write_erofs(
            &step,
            &modules.join("lib/modules"),
            &folder.join("modules.erofs"),
        )?;
        write_initrd(&step, &modules, &version, &folder.join("initrd"))?;
        let vmlinuz = only_entry(&unpacked.join("boot"), "vmlinuz-")?;
        fs::copy(vmlinuz, folder.join("vmlinuz"))?;
        step.done();
        Ok(())
    })
}

/// The node's root file system: an EROFS image.
///
/// # Errors
/// The packages cannot be fetched or the image not be written.
pub fn root(containerd: Containerd) -> Result<PathBuf> {
    let suite = containerd.suite();
    let key = Key::new().text(suite).text(&PACKAGES.join(" "));
    let name = format!("node-{}", containerd.version());
    let folder = cache::get_or_build(&name, key, |folder| {
        let step = Step::start(format!("node with containerd {}", containerd.version()));
        let tree = tempfile::tempdir_in(folder)?;
        fs::set_permissions(tree.path(), fs::Permissions::from_mode(0o755))?;
        debian::write_root(&step, suite, PACKAGES, tree.path())?;
        write_erofs(&step, tree.path(), &folder.join("root.erofs"))?;
        step.done();
        Ok(())
    })?;
    Ok(folder.join("root.erofs"))
}

/// Copies the modules of use below `root`, decompressed (the emulated node would take far longer for that than we do), and returns
/// the kernel's version.
fn copy_modules(step: &Step, unpacked: &Path, root: &Path) -> Result<String> {
    let all = only_entry(&unpacked.join("usr/lib/modules"), "")?;
    let version = all
        .file_name()
        .and_then(|name| name.to_str())
        .context("modules without a version")?;
    let modules = root.join("lib/modules").join(version);
    fs::create_dir_all(modules.join("kernel"))?;
    for list in [
        "modules.order",
        "modules.builtin",
        "modules.builtin.modinfo",
    ] {
        fs::copy(all.join(list), modules.join(list))?;
    }
    let kernel = all.join("kernel");
    for folder in MODULE_FOLDERS_LEFT_OUT {
        let unwanted = kernel.join(folder);
        if unwanted.exists() {
            fs::remove_dir_all(unwanted)?;
        }
    }
    let present = MODULE_FOLDERS
        .iter()
        .filter(|folder| kernel.join(folder).exists());
    process::run(
        step,
        Command::new("cp")
            .args(["--recursive", "--parents"])
            .args(present)
            .arg(modules.join("kernel"))
            .current_dir(&kernel),
    )?;
    let compressed = ["-name", "*.ko.xz", "-exec", "xz", "--decompress", "{}", "+"];
    process::run(step, Command::new("find").arg(&modules).args(compressed))?;
    process::run(step, system_tool("depmod").arg("-b").arg(root).arg(version))?;
    Ok(version.to_owned())
}

/// Writes the initial image: busybox, a script, and modules that are named in the order of their loading.
fn write_initrd(step: &Step, modules: &Path, version: &str, image: &Path) -> Result<()> {
    let work = tempfile::tempdir()?;
    let mut archive = Archive::new();
    for folder in [
        "bin", "dev", "proc", "sys", "root", "memory", "new", "modules",
    ] {
        archive.directory(folder, 0o755)?;
    }
    let busybox = fs::read(debian::busybox(step, work.path())?)?;
    archive.file("bin/busybox", 0o755, &busybox)?;
    let init = fs::read(workspace::xtask_file("node/initrd-init.sh"))?;
    archive.file("init", 0o755, &init)?;
    let modules = debian::module_files(modules, version, INITRD_MODULES)?;
    for (index, module) in modules.iter().enumerate() {
        archive.file(&format!("modules/{index:02}.ko"), 0o644, &fs::read(module)?)?;
    }
    fs::write(image, archive.finish()?)?;
    Ok(())
}

fn write_erofs(step: &Step, tree: &Path, image: &Path) -> Result<()> {
    process::run(step, Command::new("mkfs.erofs").arg(image).arg(tree))
}

/// The first entry of a folder whose name begins with `prefix`.
fn only_entry(folder: &Path, prefix: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(entry.path());
        }
    }
    anyhow::bail!("{} has no {prefix}*", folder.display())
}
