//! Raw disks of machines: a partition table, a file system that holds a tree, and GRUB where its BIOS boot code expects itself. None
//! of it needs a loop device or a mount.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::process::{self, system_tool};
use crate::progress::Step;

const SECTOR_LEN: u64 = 512;
/// Where the first partition of either table begins, in sectors: 1 MiB.
const FIRST_SECTOR: u64 = 2048;
/// Sectors that a GPT's copy takes at the end, rounded up to 1 MiB.
const GPT_END: u64 = 2048;
/// Length of the BIOS boot partition, in sectors.
const BIOS_BOOT_SECTORS: u64 = 2048;

/// The root file system.
pub struct Root<'a> {
    /// What it holds.
    pub tree: &'a Path,
    pub label: &'a str,
    pub uuid: &'a str,
}

/// Writes a disk with a GPT: the root file system first, GRUB's BIOS boot partition in front of it. GRUB's parts are in the tree, where
/// grub-install has them.
///
/// # Errors
/// A tool fails, or the tree has no GRUB.
pub fn write_gpt_with_grub(step: &Step, root: &Root<'_>, len: u64, disk: &Path) -> Result<()> {
    let start = FIRST_SECTOR + BIOS_BOOT_SECTORS;
    let sectors = len / SECTOR_LEN - start - GPT_END;
    File::create(disk)?.set_len(len)?;
    partition(
        disk,
        &format!(
            "label: gpt\n\
             start={start}, size={sectors}, type=linux, name=root\n\
             start={FIRST_SECTOR}, size={BIOS_BOOT_SECTORS}, type=21686148-6449-6E6F-744E-656564454649\n"
        ),
    )?;
    make_root(step, root, disk, start, sectors)?;
    install_grub(&root.tree.join("boot/grub/i386-pc"), disk)
}

/// Writes a disk with a DOS partition table and nothing but the root file system.
///
/// # Errors
/// A tool fails.
pub fn write_dos(step: &Step, root: &Root<'_>, len: u64, disk: &Path) -> Result<()> {
    let sectors = len / SECTOR_LEN - FIRST_SECTOR;
    File::create(disk)?.set_len(len)?;
    partition(
        disk,
        &format!("label: dos\nstart={FIRST_SECTOR}, size={sectors}, type=83, bootable\n"),
    )?;
    make_root(step, root, disk, FIRST_SECTOR, sectors)
}

fn partition(disk: &Path, table: &str) -> Result<()> {
    let mut child = system_tool("sfdisk")
        .args(["--quiet", "--no-tell-kernel", "--no-reread"])
        .arg(disk)
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot run sfdisk")?;
    child
        .stdin
        .take()
        .context("sfdisk has no stdin")?
        .write_all(table.as_bytes())?;
    let status = child.wait()?;
    ensure!(status.success(), "sfdisk failed: {status}");
    Ok(())
}

/// Makes the file system with the tree in it, of features that every boot loader reads.
fn make_root(step: &Step, root: &Root<'_>, disk: &Path, start: u64, sectors: u64) -> Result<()> {
    process::run(
        step,
        system_tool("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-L", root.label, "-U", root.uuid])
            .args(["-O", "^metadata_csum_seed,^orphan_file"])
            .args(["-E", &format!("offset={}", start * SECTOR_LEN)])
            .arg("-d")
            .arg(root.tree)
            .arg(disk)
            .arg(format!("{}k", sectors * SECTOR_LEN / 1024)),
    )
}

/// Writes `boot.img` to the disk's first sector and `core.img` to the BIOS boot partition, as grub-bios-setup does: each tells where the
/// next part begins (GRUB, include/grub/i386/pc/boot.h, and grub-core/boot/i386/pc/diskboot.S).
fn install_grub(modules: &Path, disk: &Path) -> Result<()> {
    /// Bytes of the first sector before the DOS partition table's identifier.
    const BOOT_CODE_LEN: usize = 440;
    /// The number in `boot.img` of the sector to load.
    const KERNEL_SECTOR: u64 = 0x5c;
    /// The number in `core.img`'s first sector of the sector where the rest of it begins.
    const BLOCK_LIST_START: u64 = 0x1f4;
    let read = |name: &str| {
        let path = modules.join(name);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let (boot, core) = (read("boot.img")?, read("core.img")?);
    ensure!(
        core.len() as u64 <= BIOS_BOOT_SECTORS * SECTOR_LEN,
        "core.img does not fit into its partition"
    );
    let mut disk = File::options().write(true).open(disk)?;
    disk.write_all(boot.get(..BOOT_CODE_LEN).context("boot.img is short")?)?;
    disk.write_all_at(&FIRST_SECTOR.to_le_bytes(), KERNEL_SECTOR)?;
    let offset = FIRST_SECTOR * SECTOR_LEN;
    disk.seek(SeekFrom::Start(offset))?;
    disk.write_all(&core)?;
    disk.write_all_at(&(FIRST_SECTOR + 1).to_le_bytes(), offset + BLOCK_LIST_START)?;
    Ok(())
}

/// Packs `folder` as the layer of an image; with an `owner`, whose user and group all of it then has.
///
/// # Errors
/// tar fails.
pub fn pack(step: &Step, folder: &Path, owner: Option<u32>, layer: &Path) -> Result<()> {
    let mut command = Command::new("tar");
    command.args(["--create", "--sort=name", "--numeric-owner"]);
    if let Some(owner) = owner {
        command.args([format!("--owner={owner}"), format!("--group={owner}")]);
    }
    command.arg("--file").arg(layer);
    command.arg("--directory").arg(folder);
    process::run(step, command.arg("."))
}
