//! The files of an untrusted volume: every path is resolved inside of it, whatever its symbolic
//! links say (openat2(2), RESOLVE_IN_ROOT).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use podvisor_boot_entries::{FileKind, FileTree};
use rustix::fs::{Dir, Mode, OFlags, ResolveFlags, openat2};

/// Names of a folder that are looked at. /boot has some dozen.
const MAX_NAMES: usize = 4096;

/// A folder that is a volume's root. Copies share it.
#[derive(Debug, Clone)]
pub struct Tree {
    root: Arc<OwnedFd>,
}

impl Tree {
    /// The tree below `path`.
    ///
    /// # Errors
    ///
    /// What open(2) said.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            root: Arc::new(rustix::fs::open(path, flags, Mode::empty())?),
        })
    }

    /// Opens the regular file `path` for reading.
    ///
    /// # Errors
    ///
    /// What openat2(2) said; InvalidInput for anything but a regular file.
    pub fn file(&self, path: &str) -> io::Result<File> {
        // Not blocking: it may be a FIFO.
        let file =
            File::from(self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is not a regular file",
            ));
        }
        Ok(file)
    }

    fn resolve(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC;
        Ok(openat2(&*self.root, path, flags, Mode::empty(), how)?)
    }
}

impl FileTree for Tree {
    fn kind(&self, path: &str) -> Option<FileKind> {
        let file = File::from(self.resolve(path, OFlags::PATH).ok()?);
        let metadata = file.metadata().ok()?;
        if metadata.is_dir() {
            return Some(FileKind::Folder);
        }
        metadata.is_file().then_some(FileKind::File(metadata.len()))
    }

    fn read(&self, path: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let file = self.file(path)?;
        // What a request may ask for is bounded by the file's own length.
        let rest = file.metadata()?.len().saturating_sub(offset);
        let len = usize::try_from(rest).map_or(len, |rest| len.min(rest));
        let mut buffer = vec![0; len];
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, offset.saturating_add(done as u64))? {
                0 => break,
                count => done += count,
            }
        }
        buffer.truncate(done);
        Ok(buffer)
    }

    fn list(&self, path: &str) -> Vec<String> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let Ok(folder) = self.resolve(path, flags) else {
            return Vec::new();
        };
        let entries = Dir::read_from(&folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| {
            let name = entry.file_name().to_str().ok()?;
            (name != "." && name != "..").then(|| name.to_owned())
        });
        let mut names: Vec<String> = names.take(MAX_NAMES).collect();
        names.sort();
        names
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree() -> (tempfile::TempDir, Tree) {
        let folder = tempfile::tempdir().unwrap();
        let boot = folder.path().join("boot");
        std::fs::create_dir(&boot).unwrap();
        std::fs::write(boot.join("vmlinuz-1"), "kernel").unwrap();
        symlink("/boot/vmlinuz-1", folder.path().join("vmlinuz")).unwrap();
        symlink("../../../../etc/passwd", boot.join("out")).unwrap();
        symlink("loop", boot.join("loop")).unwrap();
        let tree = Tree::open(folder.path()).unwrap();
        (folder, tree)
    }

    #[test]
    fn links_stay_inside() {
        let (_folder, tree) = tree();
        assert_eq!(tree.kind("/vmlinuz"), Some(FileKind::File(6)));
        assert_eq!(tree.kind("/../../boot"), Some(FileKind::Folder));
        assert_eq!(tree.kind("/boot/out"), None);
        assert_eq!(tree.kind("/boot/loop"), None);
        assert_eq!(tree.read("/vmlinuz", 2, 100).unwrap(), b"rnel");
        assert_eq!(tree.list("/boot"), ["loop", "out", "vmlinuz-1"]);
        assert!(tree.list("/nothing").is_empty());
    }

    #[test]
    fn only_regular_files_are_opened() {
        let (folder, tree) = tree();
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(tree.file("/fifo").is_err());
        assert!(tree.file("/boot").is_err());
        assert_eq!(tree.kind("/fifo"), None);
    }
}
