//! The file system driven as the FUSE server drives it, as root, on directories of this machine.

mod attributes;
mod confinement;
mod files;
mod lifetimes;
mod listings;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, ROOT_ID};
use fuse_backend_rs::api::filesystem::{Context, Entry, FileSystem};
use rustix::fs::{CWD, Mode, OFlags, openat};
use tempfile::TempDir;

use super::super::export::{CachePolicy, ExportOptions, Writes};
use super::super::exports::{Exports, Tree};
use super::super::limits::OpenFileBudget;

/// A tree with exports of a temporary directory's subdirectories.
struct Host {
    directory: TempDir,
    exports: Exports,
    tree: std::sync::Arc<Tree>,
}

const ROOT_USER: Context = Context {
    uid: 0,
    gid: 0,
    pid: 1,
};
const USER: Context = Context {
    uid: 1000,
    gid: 2000,
    pid: 1,
};

impl Host {
    fn new() -> Self {
        Self::with_budget(OpenFileBudget::of(1 << 16))
    }

    fn with_budget(budget: OpenFileBudget) -> Self {
        let exports = Exports::with_budget(budget).unwrap();
        let tree = exports.tree();
        let directory = tempfile::tempdir().unwrap();
        Self {
            directory,
            exports,
            tree,
        }
    }

    /// A host with one writable export "data", and its root's number.
    fn with_export() -> (Self, u64) {
        let host = Self::new();
        let root = host.export("data", Writes::Everything);
        (host, root)
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.directory.path().join(path)
    }

    /// Exports the subdirectory `name`, made if it is not there; the number of its root.
    fn export(&self, name: &str, writes: Writes) -> u64 {
        std::fs::create_dir_all(self.path(name)).unwrap();
        self.export_path(name, &self.path(name), writes, CachePolicy::Always)
    }

    fn export_path(&self, name: &str, path: &Path, writes: Writes, cache: CachePolicy) -> u64 {
        let options = ExportOptions { writes, cache };
        self.exports.add(name, path_fd(path), options).unwrap();
        self.look_up(ROOT_ID, name).unwrap().inode
    }

    fn look_up(&self, parent: u64, name: &str) -> io::Result<Entry> {
        let entry = self.tree.lookup(&ROOT_USER, parent, &c(name))?;
        if entry.inode == 0 {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        }
        Ok(entry)
    }

    fn create(&self, caller: &Context, parent: u64, name: &str, args: CreateIn) -> Created {
        let (entry, handle, ..) = self
            .tree
            .create(caller, parent, &c(name), args)
            .map_err(|error| error.raw_os_error().unwrap())?;
        Ok((entry, handle.unwrap()))
    }
}

/// What a creation gave: entry and handle, or the error's number.
type Created = Result<(Entry, u64), i32>;

fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

fn path_fd(path: &Path) -> OwnedFd {
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// The error's number of something that has to fail.
fn code<T>(result: io::Result<T>) -> i32 {
    match result {
        Ok(_) => panic!("this has to fail"),
        Err(error) => error.raw_os_error().unwrap(),
    }
}

/// Arguments of FUSE_CREATE: write access, mode 0666.
fn creation(flags: i32, umask: u32) -> CreateIn {
    CreateIn {
        flags: u32::try_from(flags | libc::O_CREAT | libc::O_RDWR).unwrap(),
        mode: libc::S_IFREG | 0o666,
        umask,
        fuse_flags: 0,
    }
}

fn write(path: impl AsRef<Path>, content: &str) {
    std::fs::write(path, content).unwrap();
}

/// How many descriptors this process has open on files below `directory`.
fn descriptors_below(directory: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = links.filter_map(|link| std::fs::read_link(link.unwrap().path()).ok());
    targets.filter(|path| path.starts_with(directory)).count()
}

fn second() -> CachePolicy {
    CachePolicy::Bounded(Duration::from_secs(1))
}

fn content(file: &Path) -> Vec<u8> {
    let mut content = Vec::new();
    io::Read::read_to_end(&mut File::open(file).unwrap(), &mut content).unwrap();
    content
}
