//! Paths inside a container's root. The image decides what lies there, symbolic
//! links included, so every path is walked one component at a time and never
//! leaves the root.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Symbolic links followed before giving up (MAXSYMLINKS).
const MAX_LINKS: u32 = 40;

/// What to make where a path does not exist yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Nothing: NotFound.
    Fail,
    /// A directory.
    Directory,
    /// An empty file, in directories made as needed.
    File,
}

/// The root directory of a container.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
}

impl Root {
    /// Wraps a descriptor of the root directory.
    #[must_use]
    pub fn new(directory: OwnedFd) -> Self {
        Self { directory }
    }

    /// Opens a directory as root.
    ///
    /// # Errors
    ///
    /// What open(2) said.
    pub fn open(path: &str) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            directory: rustix::fs::open(path, flags, Mode::empty())?,
        })
    }

    /// An O_PATH descriptor of what `path` names inside the root, with symbolic
    /// links followed, made according to `missing` where it does not exist.
    ///
    /// # Errors
    ///
    /// What the walk met; ELOOP for too many links.
    pub fn resolve(&self, path: &str, missing: Missing) -> io::Result<OwnedFd> {
        Walk::new(self.directory.as_fd(), path)?.finish(missing)
    }

    /// The directory that holds `path`'s last component, made when missing, and
    /// that component.
    ///
    /// # Errors
    ///
    /// As [`Root::resolve`]; InvalidInput when there is no last component.
    pub fn resolve_parent(&self, path: &str) -> io::Result<(OwnedFd, OsString)> {
        let path = std::path::Path::new(path);
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = path
            .parent()
            .and_then(std::path::Path::to_str)
            .unwrap_or("/");
        Ok((self.resolve(parent, Missing::Directory)?, name.to_owned()))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// A walk in progress.
struct Walk<'a> {
    root: BorrowedFd<'a>,
    /// Directories below the root, outermost first.
    entered: Vec<OwnedFd>,
    pending: VecDeque<OsString>,
    links: u32,
}

impl<'a> Walk<'a> {
    fn new(root: BorrowedFd<'a>, path: &str) -> io::Result<Self> {
        let mut walk = Self {
            root,
            entered: Vec::new(),
            pending: VecDeque::new(),
            links: 0,
        };
        walk.prepend(OsStr::new(path));
        Ok(walk)
    }

    fn prepend(&mut self, path: &OsStr) {
        let components = path.as_bytes().split(|byte| *byte == b'/').rev();
        for component in components.filter(|name| !name.is_empty() && *name != b".") {
            self.pending
                .push_front(OsString::from_vec(component.to_vec()));
        }
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.entered.last().map_or(self.root, OwnedFd::as_fd)
    }

    fn finish(mut self, missing: Missing) -> io::Result<OwnedFd> {
        while let Some(name) = self.pending.pop_front() {
            if name == ".." {
                self.entered.pop();
                continue;
            }
            let found = match open_entry(self.here(), &name) {
                Err(Errno::NOENT) if missing != Missing::Fail => {
                    let file = missing == Missing::File && self.pending.is_empty();
                    make_entry(self.here(), &name, file)?
                }
                found => found?,
            };
            let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
            match kind {
                FileType::Symlink => self.follow(found)?,
                FileType::Directory => self.entered.push(found),
                _ if self.pending.is_empty() => return Ok(found),
                _ => return Err(Errno::NOTDIR.into()),
            }
        }
        match self.entered.pop() {
            Some(directory) => Ok(directory),
            None => Ok(self.root.try_clone_to_owned()?),
        }
    }

    fn follow(&mut self, link: OwnedFd) -> io::Result<()> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno::LOOP.into());
        }
        let target = rustix::fs::readlinkat(&link, "", Vec::new())?;
        if target.as_bytes().starts_with(b"/") {
            self.entered.clear();
        }
        self.prepend(OsStr::from_bytes(target.as_bytes()));
        Ok(())
    }
}

fn open_entry(directory: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

fn make_entry(directory: BorrowedFd<'_>, name: &OsStr, file: bool) -> io::Result<OwnedFd> {
    if file {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644))?;
    } else {
        rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(0o755))?;
    }
    Ok(open_entry(directory, name)?)
}

/// Whether the descriptor names a directory.
///
/// # Errors
///
/// What fstat(2) said.
pub fn is_directory(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let stat = rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn same(fd: &OwnedFd, path: &std::path::Path) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        let (found, wanted) = (
            rustix::fs::fstat(fd).unwrap(),
            std::fs::metadata(path).unwrap(),
        );
        (found.st_ino, found.st_dev) == (wanted.ino(), wanted.dev())
    }

    fn root() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open(directory.path().to_str().unwrap()).unwrap();
        (directory, root)
    }

    #[test]
    fn missing_directories_and_files_are_made() {
        let (directory, root) = root();
        let made = root.resolve("/a/b/c.txt", Missing::File).unwrap();
        assert!(same(&made, &directory.path().join("a/b/c.txt")));
        let made = root.resolve("/a/d", Missing::Directory).unwrap();
        assert!(is_directory(made.as_fd()).unwrap());
    }

    #[test]
    fn links_and_dots_never_leave_the_root() {
        let (directory, root) = root();
        std::fs::create_dir(directory.path().join("etc")).unwrap();
        symlink("/etc", directory.path().join("absolute")).unwrap();
        symlink("../../../../etc", directory.path().join("relative")).unwrap();
        for path in ["/absolute", "/relative", "/../../etc", "/etc/../../etc/."] {
            let found = root.resolve(path, Missing::Fail).unwrap();
            assert!(same(&found, &directory.path().join("etc")), "{path}");
        }
    }

    #[test]
    fn a_dangling_link_is_completed_inside() {
        let (directory, root) = root();
        std::fs::create_dir(directory.path().join("etc")).unwrap();
        symlink(
            "../run/systemd/resolv.conf",
            directory.path().join("etc/resolv.conf"),
        )
        .unwrap();
        let made = root.resolve("/etc/resolv.conf", Missing::File).unwrap();
        assert!(same(
            &made,
            &directory.path().join("run/systemd/resolv.conf")
        ));
    }

    #[test]
    fn a_circle_of_links_ends() {
        let (directory, root) = root();
        symlink("loop", directory.path().join("loop")).unwrap();
        let error = root.resolve("/loop", Missing::Directory).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn a_file_is_no_directory() {
        let (directory, root) = root();
        std::fs::write(directory.path().join("file"), "").unwrap();
        let error = root.resolve("/file/below", Missing::Directory).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTDIR));
    }

    #[test]
    fn the_root_itself_resolves() {
        let (directory, root) = root();
        assert!(same(
            &root.resolve("/", Missing::Fail).unwrap(),
            directory.path()
        ));
    }
}
