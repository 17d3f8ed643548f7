//! Disks of small machines: our kernel, busybox, and a boot configuration of one kind or another.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::node;

pub const BUSYBOX: &str = "/bin/busybox";
const SECTOR: u64 = 512;
/// Where the only partition begins, in sectors.
const FIRST: u32 = 2048;
/// Length of the partition: the kernel has 6 MiB, its copies in other files as much.
const MIB: u64 = 48;
/// UUID of the file system that is the machine's root.
pub const UUID: &str = "0b0e7d15-0000-4000-8000-000000000001";
/// The machine's init: it says which boot configuration led to it.
pub const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
exec > /dev/kmsg 2>&1
echo \"machine: $(/bin/busybox cat /proc/cmdline)\"
/bin/busybox poweroff -f
";

/// What a machine's root has beside kernel and busybox.
#[derive(Default)]
pub struct Layout<'a> {
    pub files: &'a [(&'a str, &'a [u8])],
    /// Its init, where that is to do more than to say what it was started with.
    pub init: Option<&'a str>,
    /// Programs of the release that it has in /bin.
    pub programs: &'a [&'a str],
    pub without_kernel: bool,
}

/// Our kernel, as one that kexec takes. It is linked for one address, where its decompressor puts it
/// from wherever it was loaded, but its header does not say so (Documentation/arch/x86/boot.rst,
/// XLF_CAN_BE_LOADED_ABOVE_4G).
pub fn bzimage() -> Result<Vec<u8>> {
    const XLOADFLAGS: usize = 0x236;
    const ABOVE_4G: u8 = 2;
    let path = std::env::var_os("PODVISOR_BZIMAGE").context("PODVISOR_BZIMAGE names no kernel")?;
    let mut kernel = fs::read(PathBuf::from(path))?;
    *kernel.get_mut(XLOADFLAGS).context("no kernel")? |= ABOVE_4G;
    Ok(kernel)
}

/// Writes the root tree of a machine.
pub fn write_tree(tree: &Path, layout: &Layout<'_>) -> Result<()> {
    for folder in ["bin", "boot", "dev", "etc", "proc", "sbin", "sys", "tmp"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    fs::copy(BUSYBOX, tree.join("bin/busybox"))?;
    write_program(&tree.join("sbin/init"), layout.init.unwrap_or(INIT))?;
    for program in layout.programs {
        fs::copy(
            node::release()?.join(program),
            tree.join("bin").join(program),
        )?;
    }
    if !layout.without_kernel {
        fs::write(tree.join("boot/vmlinuz-6"), bzimage()?)?;
        symlink("boot/vmlinuz-6", tree.join("vmlinuz"))?;
    }
    write_files(tree, layout.files)
}

/// Writes files with the folders that they are in.
pub fn write_files(tree: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    for (path, content) in files {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().context("a path without a folder")?)?;
        fs::write(path, content)?;
    }
    Ok(())
}

/// Writes a disk with one ext4 partition.
pub fn write(folder: &Path, name: &str, layout: &Layout<'_>) -> Result<PathBuf> {
    let tree = folder.join(format!("{name}-tree"));
    write_tree(&tree, layout)?;
    let disk = folder.join(name);
    partitioned(&disk)?;
    let root = Ext4 {
        label: "root",
        uuid: UUID,
        offset: u64::from(FIRST) * SECTOR,
        len_mib: MIB,
    };
    root.write(&tree, &disk)?;
    Ok(disk)
}

/// An ext4 file system, somewhere in a file or device.
pub struct Ext4<'a> {
    pub label: &'a str,
    pub uuid: &'a str,
    /// Where it begins, in bytes.
    pub offset: u64,
    pub len_mib: u64,
}

impl Ext4<'_> {
    /// Writes it with the files of `tree`.
    pub fn write(&self, tree: &Path, file: &Path) -> Result<()> {
        let mut mke2fs = Command::new("mke2fs");
        mke2fs
            .args(["-q", "-F", "-t", "ext4", "-L", self.label, "-U", self.uuid])
            .arg("-d")
            .arg(tree)
            .args(["-E", &format!("offset={}", self.offset)])
            .arg(file)
            .arg(format!("{}M", self.len_mib));
        run(&mut mke2fs)
    }
}

/// Runs a tool to its end.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

fn write_program(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text)?;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// A disk with a master boot record of one Linux partition.
fn partitioned(path: &Path) -> Result<()> {
    let file = File::create(path)?;
    let len = u32::try_from(MIB * (1 << 20) / SECTOR)?;
    file.set_len((u64::from(FIRST) + u64::from(len)) * SECTOR)?;
    let mut record = [0_u8; 66];
    // Type, first sector and length of the first entry; the signature.
    record
        .get_mut(4)
        .map(|kind| *kind = 0x83)
        .context("no entry")?;
    for (at, value) in [(8, FIRST), (12, len)] {
        let field = record.get_mut(at..at + 4).context("no field")?;
        field.copy_from_slice(&value.to_le_bytes());
    }
    let signature = record.get_mut(64..).context("no signature")?;
    signature.copy_from_slice(&[0x55, 0xaa]);
    Ok(file.write_all_at(&record, 446)?)
}

/// A PE file of these sections, as unified kernel images are.
pub fn unified(sections: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    const SECTION_LEN: usize = 40;
    let mut file = b"MZ".to_vec();
    file.resize(0x3c, 0);
    file.extend(0x40_u32.to_le_bytes());
    file.extend(b"PE\0\0\x64\x86");
    file.extend(u16::try_from(sections.len())?.to_le_bytes());
    file.resize(file.len() + 16, 0);
    let mut offset = file.len() + sections.len() * SECTION_LEN;
    for (name, content) in sections {
        let len = u32::try_from(content.len())?;
        let mut header = name.as_bytes().to_vec();
        header.resize(8, 0);
        for field in [len, 0, len, u32::try_from(offset)?] {
            header.extend(field.to_le_bytes());
        }
        header.resize(SECTION_LEN, 0);
        file.extend(header);
        offset += content.len();
    }
    for (_, content) in sections {
        file.extend(*content);
    }
    Ok(file)
}
