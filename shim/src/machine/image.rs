//! The disk that an image brings: the one file in its `/disk` that no other file there is based on. Nothing of the image is trusted, its
//! links lead nowhere outside of it.

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use podvisor_devices::virtio::block::image::backing_name;
use thiserror::Error;

/// The folder, from the image's root.
const FOLDER: &str = "disk";
/// How disks' files end.
const SUFFIXES: [&str; 3] = [".qcow2", ".raw", ".img"];
/// Entries of a folder that are looked at.
const ENTRIES_MAX: usize = 4096;

/// The disk of an image.
#[derive(Debug)]
pub struct ImageDisk {
    /// Its file's name.
    pub name: String,
    /// Its file, for reading.
    pub file: File,
    /// The folder that it lies in, where the files that it is based on are looked for.
    pub folder: OwnedFd,
}

/// Two are equal when they are the same file.
impl PartialEq for ImageDisk {
    fn eq(&self, other: &Self) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        match (self.file.metadata(), other.file.metadata()) {
            (Ok(one), Ok(two)) => (one.dev(), one.ino()) == (two.dev(), two.ino()),
            _ => false,
        }
    }
}

impl Eq for ImageDisk {}

/// Why an image's disk cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ImageError {
    /// There are several, and nothing tells which.
    #[error("/disk has several files: {}; a machine's image has one disk, and what that is based on", .0.join(", "))]
    Several(Vec<String>),
    /// It is not a file.
    #[error("/disk/{0} is not a regular file")]
    NoFile(String),
    /// The host refused.
    #[error("cannot open /disk/{name}")]
    Open {
        /// The file.
        name: String,
        /// What the host said.
        source: Errno,
    },
}

impl ImageDisk {
    /// The disk in the image whose root file system is at `root`. Unless the image `must` have one, only
    /// a file that is named as a disk counts.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn find(root: &Path, must: bool) -> Result<Option<Self>, ImageError> {
        let Ok(folder) = open_below(root, FOLDER, OFlag::O_RDONLY | OFlag::O_DIRECTORY) else {
            return Ok(None);
        };
        let all = entries(root, FOLDER);
        let named = |name: &String| SUFFIXES.iter().any(|suffix| name.ends_with(suffix));
        let disks: Vec<String> = all.iter().filter(|name| named(name)).cloned().collect();
        let candidates = if disks.is_empty() && must { all } else { disks };
        let tops = tops(root, candidates);
        let name = match tops.as_slice() {
            [] => return Ok(None),
            [name] => name.clone(),
            _ => return Err(ImageError::Several(tops)),
        };
        let opened = open_disk(root, &name);
        let file = File::from(opened.map_err(|source| ImageError::Open {
            name: name.clone(),
            source,
        })?);
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return Err(ImageError::NoFile(name));
        }
        Ok(Some(Self { name, file, folder }))
    }
}

/// Those of the files in the folder that no other of them lies on. All of them, when each lies on another
/// one, or one alone.
fn tops(root: &Path, names: Vec<String>) -> Vec<String> {
    if names.len() < 2 {
        return names;
    }
    let below: BTreeSet<String> = names
        .iter()
        .filter_map(|name| {
            let file = File::from(open_disk(root, name).ok()?);
            let backing = file.metadata().ok().filter(Metadata::is_file);
            let backing = backing.and_then(|_| backing_name(&file))?;
            // "./base.raw" is the file "base.raw".
            let path = Path::new(&backing).components();
            let path: PathBuf = path.filter(|part| *part != Component::CurDir).collect();
            path.to_str().filter(|path| path != name).map(str::to_owned)
        })
        .collect();
    let is_top = |name: &&String| !below.contains(*name);
    let tops: Vec<String> = names.iter().filter(is_top).cloned().collect();
    if tops.is_empty() { names } else { tops }
}

/// Opens a file in the folder. Pipes do not block it.
fn open_disk(root: &Path, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    open_below(root, &format!("{FOLDER}/{name}"), flags)
}

/// Opens what lies at `path` in the tree at `root`; links are followed as if the tree were all there is.
fn open_below(root: &Path, path: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
    let at = nix::fcntl::open(root, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(&at, path, how)
}

/// The names in a folder of the tree at `root`, sorted; none of a folder that is not there.
pub fn entries(root: &Path, folder: &str) -> Vec<String> {
    let opened = open_below(root, folder, OFlag::O_RDONLY | OFlag::O_DIRECTORY);
    let Ok(folder) = opened.and_then(Dir::from_fd) else {
        return Vec::new();
    };
    let names = folder.into_iter().take(ENTRIES_MAX).flatten();
    let mut names: Vec<String> = names
        .filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned))
        .filter(|name| name != "." && name != "..")
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn image(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("disk")).unwrap();
        for file in files {
            std::fs::write(root.path().join("disk").join(file), "x").unwrap();
        }
        root
    }

    fn name(root: &tempfile::TempDir, must: bool) -> Result<Option<String>, ImageError> {
        ImageDisk::find(root.path(), must).map(|found| found.map(|disk| disk.name))
    }

    #[test]
    fn the_one_file_named_as_a_disk_is_the_disk() {
        let root = image(&["readme", "a.qcow2"]);
        assert_eq!(name(&root, false), Ok(Some("a.qcow2".to_owned())));
        let unnamed = image(&["machine"]);
        assert_eq!(name(&unnamed, false), Ok(None));
        assert_eq!(name(&unnamed, true), Ok(Some("machine".to_owned())));
        assert_eq!(name(&tempfile::tempdir().unwrap(), true), Ok(None));
    }

    #[test]
    fn several_are_refused_by_name() {
        let error = name(&image(&["a.raw", "b.qcow2"]), false).unwrap_err();
        assert!(error.to_string().contains("a.raw, b.qcow2"), "{error}");
    }

    /// The begin of a qcow2 image (docs/interop/qcow2.rst of QEMU) that lies on the file `backing`: all
    /// that is looked at.
    fn lies_on(backing: &str) -> Vec<u8> {
        let mut header = vec![0; 65536];
        let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
        put(0, b"QFI\xfb");
        put(4, &3_u32.to_be_bytes());
        put(8, &512_u64.to_be_bytes());
        put(16, &u32::try_from(backing.len()).unwrap().to_be_bytes());
        put(20, &16_u32.to_be_bytes());
        put(24, &(1_u64 << 20).to_be_bytes());
        put(36, &1_u32.to_be_bytes());
        put(40, &(3_u64 << 16).to_be_bytes());
        put(48, &(1_u64 << 16).to_be_bytes());
        put(56, &1_u32.to_be_bytes());
        put(96, &4_u32.to_be_bytes());
        put(100, &104_u32.to_be_bytes());
        put(512, backing.as_bytes());
        header
    }

    #[test]
    fn what_a_disk_is_based_on_lies_beside_it() {
        let root = image(&["base.raw"]);
        let disk = |name: &str| root.path().join("disk").join(name);
        std::fs::write(disk("a.qcow2"), lies_on("./base.raw")).unwrap();
        assert_eq!(name(&root, false), Ok(Some("a.qcow2".to_owned())));
        std::fs::write(disk("top.qcow2"), lies_on("a.qcow2")).unwrap();
        assert_eq!(name(&root, false), Ok(Some("top.qcow2".to_owned())));
        // Two disks on the same base, and two that lie on one another.
        std::fs::write(disk("top.qcow2"), lies_on("base.raw")).unwrap();
        let two = ["a.qcow2", "top.qcow2"].map(str::to_owned).to_vec();
        assert_eq!(name(&root, false), Err(ImageError::Several(two.clone())));
        std::fs::remove_file(disk("base.raw")).unwrap();
        std::fs::write(disk("a.qcow2"), lies_on("top.qcow2")).unwrap();
        std::fs::write(disk("top.qcow2"), lies_on("a.qcow2")).unwrap();
        assert_eq!(name(&root, false), Err(ImageError::Several(two)));
    }

    #[test]
    fn a_link_stays_in_the_image() {
        let root = image(&[]);
        symlink("/etc/passwd", root.path().join("disk/a.raw")).unwrap();
        let missing = Err(ImageError::Open {
            name: "a.raw".to_owned(),
            source: Errno::ENOENT,
        });
        assert_eq!(name(&root, false), missing);
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), "of the image").unwrap();
        let disk = ImageDisk::find(root.path(), false).unwrap().unwrap();
        assert_eq!(std::io::read_to_string(disk.file).unwrap(), "of the image");
    }

    #[test]
    fn a_folder_is_no_disk() {
        let root = image(&[]);
        std::fs::create_dir(root.path().join("disk/a.raw")).unwrap();
        assert_eq!(
            name(&root, false),
            Err(ImageError::NoFile("a.raw".to_owned()))
        );
    }
}
