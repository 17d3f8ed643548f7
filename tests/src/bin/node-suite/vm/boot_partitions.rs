//! Disks of several partitions, and file systems of every kind that a machine boots from. Nothing is
//! mounted: the tools fill what they make.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::boot_disk::{Ext4, UUID, run};

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// The least that mkfs.xfs makes, and some.
const XFS_LEN: u64 = 320 * MIB;
const BTRFS_LEN: u64 = 256 * MIB;
/// FAT has 32 bits from 33 MiB on.
const VFAT_LEN: u64 = 64 * MIB;

const EXT4_MIB: u64 = 64;

/// What a partition is for, as sfdisk calls it.
pub const ESP: &str = "uefi";
pub const LINUX: &str = "linux";
pub const LVM: &str = "lvm";

/// A partition's type, and the file or device that its content is copied from: whole MiB.
pub type Partition<'a> = (&'static str, &'a Path);

/// UUID of the partition `number`, counted from 1.
pub fn partition_uuid(number: usize) -> String {
    format!("0b0e7d15-0000-4000-9000-{number:012}")
}

/// Writes a disk with a GPT.
pub fn disk(folder: &Path, partitions: &[Partition<'_>]) -> Result<PathBuf> {
    let disk = folder.join("disk");
    let mut table = "label: gpt\n".to_owned();
    let mut start = MIB;
    let mut copies = Vec::new();
    for (number, (kind, content)) in (1..).zip(partitions) {
        let len = len(content)?;
        let (first, sectors) = (start / SECTOR, len / SECTOR);
        let uuid = partition_uuid(number);
        writeln!(
            table,
            "start={first}, size={sectors}, type={kind}, uuid={uuid}"
        )?;
        copies.push((start, *content));
        start += len;
    }
    // Room for the second copy of the table.
    File::create(&disk)?.set_len(start + MIB)?;
    partition(&disk, &table)?;
    for (start, content) in copies {
        copy(content, &disk, start)?;
    }
    Ok(disk)
}

/// Length of a file or device.
fn len(path: &Path) -> Result<u64> {
    Ok(File::open(path)?.seek(SeekFrom::End(0))?)
}

fn partition(disk: &Path, table: &str) -> Result<()> {
    let mut sfdisk = Command::new("sfdisk")
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(disk)
        .stdin(Stdio::piped())
        .spawn()?;
    let mut input = sfdisk.stdin.take().context("sfdisk without an input")?;
    input.write_all(table.as_bytes())?;
    drop(input);
    let status = sfdisk.wait()?;
    ensure!(status.success(), "sfdisk: {status}");
    Ok(())
}

/// Copies a partition's content to its place, without its zeros.
fn copy(content: &Path, disk: &Path, start: u64) -> Result<()> {
    let mut from = std::ffi::OsString::from("if=");
    from.push(content);
    let mut to = std::ffi::OsString::from("of=");
    to.push(disk);
    let seek = format!("seek={}", start / MIB);
    let mut dd = Command::new("dd");
    dd.args([from, to]);
    run(dd.args([&*seek, "bs=1M", "conv=sparse,notrunc", "status=none"]))
}

/// An ext4 file system with the files of `tree`.
pub fn ext4(folder: &Path, tree: &Path, label: &str, uuid: &str) -> Result<PathBuf> {
    let image = folder.join(label);
    let whole = Ext4 {
        label,
        uuid,
        offset: 0,
        len_mib: EXT4_MIB,
    };
    whole.write(tree, &image)?;
    Ok(image)
}

/// An XFS file system, the machine's root, with the files of `tree`.
pub fn xfs(folder: &Path, tree: &Path) -> Result<PathBuf> {
    let (image, description) = (folder.join("xfs"), folder.join("xfs-tree"));
    File::create(&image)?.set_len(XFS_LEN)?;
    // A name and sizes that mkfs.xfs does not look at, and the root.
    let mut text = "xfs\n0 0\nd--755 0 0\n".to_owned();
    describe(tree, &mut text)?;
    fs::write(&description, text)?;
    let mut mkfs = Command::new("mkfs.xfs");
    mkfs.args(["-q", "-L", "root", "-m", &format!("uuid={UUID}"), "-p"]);
    run(mkfs.arg(&description).arg(&image))?;
    Ok(image)
}

/// Appends what a folder holds, in the language of mkfs.xfs(8)'s prototype files.
fn describe(folder: &Path, text: &mut String) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let name = entry.file_name();
        let name = name.to_str().context("a name that is no text")?;
        let mode = entry.metadata()?.permissions().mode() & 0o777;
        if kind.is_symlink() {
            let target = fs::read_link(&path)?;
            writeln!(text, "{name} l--777 0 0 {}", target.display())?;
        } else if kind.is_dir() {
            writeln!(text, "{name} d--{mode:03o} 0 0")?;
            describe(&path, text)?;
        } else {
            writeln!(text, "{name} ---{mode:03o} 0 0 {}", path.display())?;
        }
    }
    text.push_str("$\n");
    Ok(())
}

/// A btrfs, the machine's root, with the files of `tree`, whose folder `subvolume` is one.
pub fn btrfs(folder: &Path, tree: &Path, subvolume: &str) -> Result<PathBuf> {
    let image = folder.join("btrfs");
    File::create(&image)?.set_len(BTRFS_LEN)?;
    let mut mkfs = Command::new("mkfs.btrfs");
    mkfs.args(["-q", "-L", "root", "-U", UUID, "--subvol", subvolume]);
    run(mkfs.arg("--rootdir").arg(tree).arg(&image))?;
    Ok(image)
}

/// An EFI system partition with the files of `tree`.
pub fn vfat(folder: &Path, tree: &Path) -> Result<PathBuf> {
    let image = folder.join("vfat");
    File::create(&image)?.set_len(VFAT_LEN)?;
    let mut mkfs = Command::new("mkfs.vfat");
    mkfs.args(["-F", "32", "-n", "ESP"]).stdout(Stdio::null());
    run(mkfs.arg(&image))?;
    for entry in fs::read_dir(tree)? {
        let mut mcopy = Command::new("mcopy");
        mcopy.args(["-s", "-i"]).arg(&image);
        run(mcopy.arg(entry?.path()).arg("::/"))?;
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_tree_is_described_as_mkfs_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bin/init");
        fs::create_dir(folder.path().join("bin")).unwrap();
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        symlink("/bin/init", folder.path().join("bin/link")).unwrap();
        let mut text = String::new();
        describe(folder.path(), &mut text).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        assert!(lines.remove(0).starts_with("bin d--"));
        assert_eq!(lines.split_off(2), ["$", "$"]);
        lines.sort();
        let init = format!("init ---755 0 0 {}", file.display());
        assert_eq!(lines, [&*init, "link l--777 0 0 /bin/init"]);
    }
}
