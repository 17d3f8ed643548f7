//! Initial images of machines whose kernel is ours: it has most file systems as modules.

use std::fs::{self, File};
use std::process::Command;

use anyhow::{Context as _, Result};
use podvisor_tests::{InitialImage, node};

use super::boot_disk::{BUSYBOX, INIT, run};

/// The device of the kernel's first console (Documentation/admin-guide/devices.txt).
const CONSOLE: (u32, u32) = (5, 1);
/// Mounts the root that the command line names and becomes its init, as any distribution's does.
const MOUNT_ROOT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t devtmpfs dev /dev
exec > /dev/kmsg 2>&1
for module in /modules/*; do insmod $module; done
for word in $(cat /proc/cmdline); do
    case $word in
        root=*) root=${word#root=} ;;
        rootflags=*) flags=${word#rootflags=} ;;
    esac
done
mount -o ro${flags:+,$flags} $(findfs $root) /root && exec switch_root /root /sbin/init
";

/// An image that mounts the root; the kernel's modules are in another one.
pub fn mounts_root() -> Result<Vec<u8>> {
    image(MOUNT_ROOT)
}

/// An image whose init says what it was started with, and needs no root.
pub fn says_command_line() -> Result<Vec<u8>> {
    image(INIT)
}

fn image(init: &str) -> Result<Vec<u8>> {
    let image = ["bin", "dev", "proc", "root"]
        .into_iter()
        .fold(InitialImage::new(), InitialImage::folder);
    Ok(image
        .device("dev/console", CONSOLE)
        .program("bin/busybox", &fs::read(BUSYBOX)?)
        .program("init", init.as_bytes())
        .finish())
}

/// An image of the module `name` and what it needs, by the order in which they are loaded.
pub fn modules(name: &str) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let release = File::open(node::release()?.join("machine-initrd.cpio"))?;
    let mut unpack = Command::new(BUSYBOX);
    unpack.args(["cpio", "-i", "-d", "--quiet", "modules/*"]);
    run(unpack.current_dir(folder.path()).stdin(release))?;
    let from = folder.path().join("modules");
    let dependencies = fs::read_to_string(from.join("modules.dep"))?;
    let mut image = InitialImage::new().folder("modules");
    for (number, file) in load_order(&dependencies, name)?.iter().enumerate() {
        let content = fs::read(from.join(file))?;
        image = image.program(&format!("modules/{number:02}-{file}"), &content);
    }
    Ok(image.finish())
}

/// A module's file after those that it needs, which modules.dep has in reverse (modules.dep(5)).
fn load_order<'a>(dependencies: &'a str, name: &str) -> Result<Vec<&'a str>> {
    let mut lines = dependencies.lines().filter_map(|line| line.split_once(':'));
    let found = lines.find(|(file, _)| *file == format!("{name}.ko"));
    let (file, needed) = found.with_context(|| format!("no module {name}"))?;
    Ok(needed.split_whitespace().rev().chain([file]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_is_loaded_before_it() {
        let dependencies = "crc.ko:\nxfs.ko: lib.ko crc.ko\n";
        let order = load_order(dependencies, "xfs").unwrap();
        assert_eq!(order, ["crc.ko", "lib.ko", "xfs.ko"]);
        assert!(load_order(dependencies, "zfs").is_err());
    }
}
