//! The busybox machine: Debian's kernel, busybox as its init, extlinux.conf as its menu, no systemd, no cloud-init. It is up within
//! seconds, which is why most tests boot it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::disk::{self, Root};
use super::qcow2;
use crate::cpio::Archive;
use crate::images::layout;
use crate::node::debian;
use crate::process::{self, system_tool};
use crate::progress::Step;
use crate::workspace;

/// The drivers that the machine loads when it runs, where the devices are there.
const MODULES: &[&str] = &[
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
    "virtio_mem",
    "virtio_scsi",
    "virtiofs",
    "vmw_vsock_virtio_transport",
    "button",
    "evdev",
    "i6300esb",
    "pvpanic-pci",
    "isofs",
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "nls_utf8",
];
/// What its initial image loads.
const INITRD_MODULES: &[&str] = &["virtio_blk"];
/// Files of `xtask/machine/busybox` and where they are in the tree.
const FILES: &[(&str, &str)] = &[
    ("inittab", "etc/inittab"),
    ("rcS", "etc/init.d/rcS"),
    ("rcK", "etc/init.d/rcK"),
    ("console", "sbin/console"),
    ("udhcpc", "etc/udhcpc"),
    ("power-button", "etc/acpi/PWRF/00000080"),
    ("extlinux.conf", "boot/extlinux/extlinux.conf"),
];
/// The folder of those files.
pub const FOLDER: &str = "machine/busybox";

const DISK_LEN: u64 = 96 << 20;
const UUID: &str = "7a4c2c0e-54f3-4d0e-8a55-9a2d62f1c7aa";
const LABEL: &str = "busybox-root";
const DISK_OWNER: u32 = 107;

/// The image that is the machine's tree.
const TREE_IMAGE: &str = "docker.io/podvisor/busybox-tree:latest";
/// The image with a qcow2 disk, and the one with a raw disk.
const IMAGES: [(&str, &str); 2] = [
    (
        "busybox-machine",
        "docker.io/podvisor/busybox-machine:latest",
    ),
    (
        "busybox-machine-raw",
        "docker.io/podvisor/busybox-machine:raw",
    ),
];

/// Writes the layouts of the images below `folder`.
///
/// # Errors
/// Packages cannot be fetched, or a tool fails.
pub fn build(folder: &Path) -> Result<()> {
    let step = Step::start("busybox machine");
    let work = tempfile::tempdir_in(folder)?;
    let tree = work.path().join("tree");
    write_tree(&step, work.path(), &tree)?;
    let layer = work.path().join("tree.tar");
    disk::pack(&step, &tree, None, &layer)?;
    let command = ["/sbin/init".to_owned()];
    layout::write(
        &folder.join("busybox-tree"),
        &layer,
        &[TREE_IMAGE.to_owned()],
        &command,
    )?;
    write_disk_images(&step, work.path(), &tree, folder)?;
    step.done();
    Ok(())
}

fn write_disk_images(step: &Step, work: &Path, tree: &Path, folder: &Path) -> Result<()> {
    let raw = work.join("busybox.raw");
    let root = Root {
        tree,
        label: LABEL,
        uuid: UUID,
    };
    disk::write_dos(step, &root, DISK_LEN, &raw)?;
    for (name, image) in IMAGES {
        let packed = work.join(name);
        let disks = packed.join("disk");
        fs::create_dir_all(&disks)?;
        if image.ends_with(":raw") {
            fs::copy(&raw, disks.join("busybox.raw"))?;
        } else {
            qcow2::write(&raw, &disks.join("busybox.qcow2"))?;
        }
        let layer = work.join("layer.tar");
        disk::pack(step, &packed, Some(DISK_OWNER), &layer)?;
        layout::write(&folder.join(name), &layer, &[image.to_owned()], &[])?;
    }
    Ok(())
}

fn write_tree(step: &Step, work: &Path, tree: &Path) -> Result<()> {
    for folder in [
        "bin", "boot", "dev", "etc", "lib", "proc", "root", "run", "sys", "tmp", "var", "www",
    ] {
        fs::create_dir_all(tree.join(folder))?;
    }
    symlink("bin", tree.join("sbin"))?;
    symlink("/proc/self/mounts", tree.join("etc/mtab"))?;
    let busybox = debian::busybox(step, work)?;
    fs::copy(&busybox, tree.join("bin/busybox"))?;
    for applet in process::output(Command::new(&busybox).arg("--list"))?.lines() {
        if applet != "busybox" {
            symlink("busybox", tree.join("bin").join(applet))?;
        }
    }
    write_configuration(tree)?;
    let kernel = work.join("kernel");
    fs::create_dir(&kernel)?;
    let package = debian::package_behind(debian::STABLE, "linux-image-cloud-amd64")?;
    debian::unpack(step, debian::STABLE, &package, &kernel)?;
    let modules = Modules::unpack(step, &kernel)?;
    fs::copy(only_kernel(&kernel)?, tree.join("boot/vmlinuz"))?;
    modules.copy_to(tree)?;
    write_initrd(&busybox, &modules, &tree.join("boot/initrd.img"))
}

fn write_configuration(tree: &Path) -> Result<()> {
    for (name, path) in FILES {
        let path = tree.join(path);
        let folder = path.parent().context("a file without a folder")?;
        fs::create_dir_all(folder)?;
        fs::copy(workspace::xtask_file(FOLDER).join(name), path)?;
    }
    let etc = tree.join("etc");
    // No password: whoever is at the console is root.
    fs::write(etc.join("passwd"), "root::0:0:root:/root:/bin/sh\n")?;
    fs::write(etc.join("group"), "root:x:0:\n")?;
    fs::write(etc.join("hostname"), "busybox\n")?;
    fs::write(etc.join("issue"), "busybox machine \\n \\l\n")?;
    fs::write(etc.join("modules"), MODULES.join("\n") + "\n")?;
    fs::write(tree.join("www/index.html"), "here\n")?;
    Ok(())
}

/// The drivers of a kernel package, decompressed: busybox loads no others.
struct Modules {
    /// The folder of `lib/modules`.
    root: PathBuf,
    version: String,
}

impl Modules {
    fn unpack(step: &Step, kernel: &Path) -> Result<Self> {
        let root = kernel.join("usr");
        let folders = root.join("lib/modules");
        let version = fs::read_dir(&folders)?
            .next()
            .context("the kernel has no modules")??
            .file_name()
            .into_string()
            .ok()
            .context("modules without a version")?;
        let decompress = ["-name", "*.ko.xz", "-exec", "xz", "--decompress", "{}", "+"];
        process::run(step, Command::new("find").arg(&folders).args(decompress))?;
        process::run(
            step,
            system_tool("depmod").arg("-b").arg(&root).arg(&version),
        )?;
        Ok(Self { root, version })
    }

    fn files(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        debian::module_files(&self.root, &self.version, names)
    }

    /// Copies the drivers of [`MODULES`] to a tree, with an index of them alone.
    fn copy_to(&self, tree: &Path) -> Result<()> {
        let folder = Path::new("lib/modules").join(&self.version);
        fs::create_dir_all(tree.join(&folder))?;
        for list in [
            "modules.order",
            "modules.builtin",
            "modules.builtin.modinfo",
        ] {
            let list = folder.join(list);
            fs::copy(self.root.join(&list), tree.join(&list))?;
        }
        for file in self.files(MODULES)? {
            let target = tree.join(file.strip_prefix(&self.root)?);
            fs::create_dir_all(target.parent().context("a driver without a folder")?)?;
            fs::copy(&file, target)?;
        }
        process::output(system_tool("depmod").arg("-b").arg(tree).arg(&self.version))?;
        Ok(())
    }
}

fn only_kernel(unpacked: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(unpacked.join("boot"))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("vmlinuz-") {
            return Ok(entry.path());
        }
    }
    anyhow::bail!("the kernel's package has no kernel")
}

fn write_initrd(busybox: &Path, modules: &Modules, image: &Path) -> Result<()> {
    let mut archive = Archive::new();
    for folder in ["bin", "dev", "modules", "proc", "root", "sys"] {
        archive.directory(folder, 0o755)?;
    }
    archive.character_device("dev/console", 0o600, (5, 1))?;
    archive.file("bin/busybox", 0o755, &fs::read(busybox)?)?;
    let init = fs::read(workspace::xtask_file(FOLDER).join("initrd-init.sh"))?;
    archive.file("init", 0o755, &init)?;
    for (index, file) in modules.files(INITRD_MODULES)?.iter().enumerate() {
        archive.file(&format!("modules/{index:02}.ko"), 0o644, &fs::read(file)?)?;
    }
    fs::write(image, archive.finish()?)?;
    Ok(())
}
