//! Disks that nobody can boot: each is refused with what is wrong with it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::registry::{Layout, unpack_disk};
use podvisor_tests::{Cri, LoopDevice};
use tempfile::TempDir;

use super::pets::failure;
use super::{BUSYBOX, BUSYBOX_BOOT, logged_in, machine, machine_pod, wait_for_log};
use crate::case::{Case, long};

/// The layout of the busybox machine's image.
const LAYOUT: &str = "busybox-machine";
const DISK_LEN: u64 = 96 << 20;
/// Where its partition begins.
const PARTITION: u64 = 1 << 20;

pub fn cases() -> Vec<Case> {
    vec![
        long("a_broken_disk_is_refused_with_the_reason", broken),
        long("a_disk_without_a_system_says_what_is_on_it", empty),
        long("a_disk_that_shrinks_fails_its_requests", shrinks),
    ]
}

/// An image whose `/disk` is made by a function.
struct BadImage<'a> {
    name: &'static str,
    make: fn(&Path, &Path) -> Result<()>,
    /// All of it is in the error.
    says: &'a [&'a str],
}

fn broken(cri: &Cri) -> Result<()> {
    let work = tempfile::tempdir_in("/var/tmp")?;
    let good = unpack_disk(LAYOUT, work.path())?;
    let images = [
        BadImage {
            name: "truncated",
            make: truncated,
            says: &["disk.qcow2"],
        },
        BadImage {
            name: "loop",
            make: loop_in_tables,
            says: &["L1"],
        },
        BadImage {
            name: "outside",
            make: backing_outside,
            says: &["backing file", "/etc/passwd"],
        },
        BadImage {
            name: "several",
            make: several,
            says: &["one.raw", "two.raw", "one"],
        },
    ];
    each_is_refused(cri, &work, &good, &images)
}

fn empty(cri: &Cri) -> Result<()> {
    let work = tempfile::tempdir_in("/var/tmp")?;
    let good = unpack_disk(LAYOUT, work.path())?;
    let images = [
        BadImage {
            name: "table",
            make: no_partitions,
            says: &["nothing to boot"],
        },
        BadImage {
            name: "kernel",
            make: no_kernel,
            says: &["nothing to boot", "ext4"],
        },
        BadImage {
            name: "format",
            make: unknown_format,
            says: &["nothing to boot"],
        },
    ];
    each_is_refused(cri, &work, &good, &images)
}

fn each_is_refused(cri: &Cri, work: &TempDir, good: &Path, images: &[BadImage<'_>]) -> Result<()> {
    let layout = Layout::create()?;
    for image in images {
        let folder = work.path().join(image.name);
        let disks = folder.join("disk");
        fs::create_dir_all(&disks)?;
        (image.make)(good, &disks).with_context(|| image.name.to_owned())?;
        let name = format!("registry.example/bad/{}:1", image.name);
        layout.add_folder(&folder, &name)?;
        fs::remove_dir_all(&folder)?;
        let pod = machine_pod(cri, image.name).run()?;
        let error = failure(machine(&pod, &name)).with_context(|| image.name.to_owned())?;
        drop(pod);
        cri.remove_image(&name)?;
        for word in image.says {
            ensure!(
                error.contains(word),
                "{}: no {word:?} in {error:?}",
                image.name
            );
        }
    }
    Ok(())
}

fn copied(good: &Path, disks: &Path) -> Result<File> {
    let disk = disks.join("disk.qcow2");
    fs::copy(good, &disk)?;
    Ok(File::options().read(true).write(true).open(disk)?)
}

fn number(file: &File, offset: u64) -> Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(u64::from_be_bytes(bytes))
}

fn truncated(good: &Path, disks: &Path) -> Result<()> {
    let disk = copied(good, disks)?;
    // The first of the tables, and all behind it, is gone.
    Ok(disk.set_len(number(&disk, L1_TABLE_OFFSET)?)?)
}

/// Where the header tells the place of the table of tables.
const L1_TABLE_OFFSET: u64 = 40;

/// The table of tables is its own first table.
fn loop_in_tables(good: &Path, disks: &Path) -> Result<()> {
    const COPIED: u64 = 1 << 63;
    let disk = copied(good, disks)?;
    let table = number(&disk, L1_TABLE_OFFSET)?;
    Ok(disk.write_all_at(&(table | COPIED).to_be_bytes(), table)?)
}

fn backing_outside(_good: &Path, disks: &Path) -> Result<()> {
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-u", "-f", "qcow2", "-F", "raw"])
        .args(["-b", "/etc/passwd"])
        .arg(disks.join("disk.qcow2"))
        .arg("1M")
        .status()?;
    ensure!(made.success(), "qemu-img: {made}");
    Ok(())
}

fn several(_good: &Path, disks: &Path) -> Result<()> {
    fs::write(disks.join("one.raw"), [0; 512])?;
    Ok(fs::write(disks.join("two.raw"), [0; 512])?)
}

fn no_partitions(_good: &Path, disks: &Path) -> Result<()> {
    Ok(File::create(disks.join("disk.raw"))?.set_len(DISK_LEN)?)
}

/// A partition with a file system, and no kernel in it.
fn no_kernel(good: &Path, disks: &Path) -> Result<()> {
    let disk = disks.join("disk.raw");
    let converted = Command::new("qemu-img")
        .args(["convert", "-O", "raw"])
        .args([good, &disk])
        .status()?;
    ensure!(converted.success(), "qemu-img: {converted}");
    let emptied = Command::new("mke2fs")
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-E",
            &format!("offset={PARTITION}"),
        ])
        .arg(&disk)
        .arg(format!("{}k", (DISK_LEN - PARTITION) >> 10))
        .status()?;
    ensure!(emptied.success(), "mke2fs: {emptied}");
    Ok(())
}

/// Another hypervisor's format is no raw disk with a system, and is not called one.
fn unknown_format(good: &Path, disks: &Path) -> Result<()> {
    let converted = Command::new("qemu-img")
        .args(["convert", "-O", "vmdk"])
        .args([good, &disks.join("disk.img")])
        .status()?;
    ensure!(converted.success(), "qemu-img: {converted}");
    Ok(())
}

/// What is gone of a volume fails the requests for it, and nothing else.
fn shrinks(cri: &Cri) -> Result<()> {
    let disk = LoopDevice::new(DISK_LEN)?;
    let data = LoopDevice::new(8 << 20)?;
    let pod = machine_pod(cri, "shrinks").run()?;
    let machine = machine(&pod, BUSYBOX).device(disk.path(), "/", "mrw");
    let machine = machine.device(data.path(), "/dev/data", "mrw").start()?;
    let mut console = logged_in(&machine)?;
    console.run("test $(cat /sys/block/vdb/size) = 16384")?;
    data.file().set_len(1 << 20)?;
    let resized = Command::new("losetup")
        .arg("--set-capacity")
        .arg(data.path())
        .status()?;
    ensure!(resized.success(), "losetup: {resized}");
    let read = |at: u64| {
        format!(
            "dd if=/dev/vdb of=/dev/null bs=4096 skip={} count=1",
            at >> 12
        )
    };
    console.run(&read(0))?;
    let error = console.run(&read(4 << 20)).err();
    ensure!(error.is_some(), "read what is gone");
    // The machine's own disk serves on.
    console.run("echo on > /var/on; sync; cat /var/on")?;
    wait_for_log(&machine, ": boot 1\n", BUSYBOX_BOOT)
}
