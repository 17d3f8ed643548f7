//! The disk that an image brings: one file in its `/disk`. Nothing of the image is trusted, its
//! links lead nowhere outside of it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
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
    #[error("/disk has several files: {}; a machine's image has one", .0.join(", "))]
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
        let mut candidates = if disks.is_empty() && must { all } else { disks };
        let name = match (candidates.pop(), candidates.is_empty()) {
            (None, _) => return Ok(None),
            (Some(name), true) => name,
            (Some(name), false) => {
                candidates.push(name);
                // What a disk is based on lies beside it: then the one that nothing is based on
                // cannot be told by names.
                return Err(ImageError::Several(candidates));
            }
        };
        let opened = open_below(
            root,
            &format!("{FOLDER}/{name}"),
            OFlag::O_RDONLY | OFlag::O_NONBLOCK,
        );
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
