//! Requests about names: looking up, making, linking, renaming and removing them.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::ROOT_ID;
use fuse_backend_rs::api::filesystem::{Context, Entry};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, linkat, mkdirat, mknodat, openat, readlinkat,
    renameat_with, symlinkat, unlinkat,
};

use super::super::attr::{FileStat, tree_root_attributes};
use super::super::credentials::as_caller;
use super::super::exports::Tree;
use super::super::inode::Inode;
use super::errno;

/// How a single name is opened to see what it is: never followed, without effects.
const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Tree {
    /// FUSE_LOOKUP. In an export a missing name is an answer that may be cached as well.
    pub(super) fn look_up_name(&self, parent: u64, name: &CStr) -> io::Result<Entry> {
        match name.to_bytes() {
            b"." => return self.look_up_self(parent),
            b".." => return self.look_up_parent(parent),
            _ => check_name(name)?,
        }
        if parent == ROOT_ID {
            return self.look_up_export(name.to_bytes());
        }
        let directory = self.inodes.get(parent)?;
        match self.look_up_child(&directory, name) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                let entry_timeout = directory.export.cache.timeout();
                Ok(Entry {
                    entry_timeout,
                    ..Entry::default()
                })
            }
            result => result,
        }
    }

    /// Looks `name` up in `directory` and counts that.
    pub(super) fn look_up_child(&self, directory: &Inode, name: &CStr) -> io::Result<Entry> {
        let child = openat(directory.path_fd()?, name, LOOK, Mode::empty())?;
        self.look_up_file(directory, child)
    }

    /// Counts a lookup of `file`, which lies in `directory`.
    pub(super) fn look_up_file(&self, directory: &Inode, file: OwnedFd) -> io::Result<Entry> {
        let stat = FileStat::of(&file)?;
        let export = &directory.export;
        let volume = if stat.dev() == directory.identity.dev {
            directory.volume
        } else {
            export.volume(stat.dev())
        };
        let inode = self
            .inodes
            .look_up(&self.proc_fd, export, file, &stat, volume)?;
        Ok(self.entry(&inode, &stat))
    }

    /// Looks up an export in the tree's root and counts that.
    pub(super) fn look_up_export(&self, name: &[u8]) -> io::Result<Entry> {
        let export = self.export(name).ok_or_else(|| errno(libc::ENOENT))?;
        let root = export.open_root()?;
        let stat = FileStat::of(&root)?;
        let volume = export.volume(stat.dev());
        let inode = self
            .inodes
            .look_up(&self.proc_fd, &export, root, &stat, volume)?;
        Ok(self.entry(&inode, &stat))
    }

    fn look_up_self(&self, id: u64) -> io::Result<Entry> {
        if id == ROOT_ID {
            return Ok(tree_root_entry());
        }
        let inode = self.inodes.get(id)?;
        let again = openat(inode.path_fd()?, c".", LOOK, Mode::empty())?;
        self.look_up_file(&inode, again)
    }

    /// Only the parents of the tree's root and of an export's root are known without asking the
    /// host, whose answer could lie outside when it moves directories meanwhile. A guest's kernel
    /// keeps parents itself.
    fn look_up_parent(&self, id: u64) -> io::Result<Entry> {
        if id == ROOT_ID || self.inodes.get(id)?.is_export_root() {
            return Ok(tree_root_entry());
        }
        Err(errno(libc::EINVAL))
    }

    /// The directory a name is to be changed in.
    fn changing(&self, parent: u64, name: &CStr) -> io::Result<Arc<Inode>> {
        check_name(name)?;
        self.writable_inode(parent)
    }

    /// FUSE_MKDIR.
    pub(super) fn make_directory(
        &self,
        caller: &Context,
        parent: u64,
        name: &CStr,
        (mode, umask): (u32, u32),
    ) -> io::Result<Entry> {
        let directory = self.changing(parent, name)?;
        let mode = Mode::from_raw_mode(mode & 0o7777);
        as_caller(caller, umask, || {
            Ok(mkdirat(directory.path_fd()?, name, mode)?)
        })?;
        self.look_up_child(&directory, name)
    }

    /// FUSE_MKNOD. Device nodes are refused but for the overlay file system's white-out (0, 0):
    /// what a guest leaves on the host's file systems must not be a way to the host's devices.
    pub(super) fn make_node(
        &self,
        caller: &Context,
        parent: u64,
        name: &CStr,
        (mode, umask): (u32, u32),
        rdev: u32,
    ) -> io::Result<Entry> {
        let directory = self.changing(parent, name)?;
        let kind = FileType::from_raw_mode(mode);
        match kind {
            FileType::RegularFile | FileType::Fifo | FileType::Socket => {}
            FileType::CharacterDevice if rdev == 0 => {}
            _ => return Err(errno(libc::EPERM)),
        }
        let mode = Mode::from_raw_mode(mode & 0o7777);
        as_caller(caller, umask, || {
            Ok(mknodat(directory.path_fd()?, name, kind, mode, 0)?)
        })?;
        self.look_up_child(&directory, name)
    }

    /// FUSE_SYMLINK.
    pub(super) fn make_symlink(
        &self,
        caller: &Context,
        target: &CStr,
        parent: u64,
        name: &CStr,
    ) -> io::Result<Entry> {
        let directory = self.changing(parent, name)?;
        as_caller(caller, 0, || {
            Ok(symlinkat(target, directory.path_fd()?, name)?)
        })?;
        self.look_up_child(&directory, name)
    }

    /// FUSE_LINK.
    pub(super) fn make_link(&self, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        let directory = self.changing(parent, name)?;
        let file = self.inodes.get(inode)?;
        Self::check_same_export(&file.export, &directory.export)?;
        linkat(
            file.path_fd()?,
            c"",
            directory.path_fd()?,
            name,
            AtFlags::EMPTY_PATH,
        )?;
        self.look_up_child(&directory, name)
    }

    /// FUSE_UNLINK and FUSE_RMDIR, as `flags` say.
    pub(super) fn remove_name(&self, parent: u64, name: &CStr, flags: AtFlags) -> io::Result<()> {
        let directory = self.changing(parent, name)?;
        Ok(unlinkat(directory.path_fd()?, name, flags)?)
    }

    /// FUSE_RENAME and FUSE_RENAME2.
    pub(super) fn rename_file(
        &self,
        (from, from_name): (u64, &CStr),
        (to, to_name): (u64, &CStr),
        flags: u32,
    ) -> io::Result<()> {
        let from = self.changing(from, from_name)?;
        let to = self.changing(to, to_name)?;
        Self::check_same_export(&from.export, &to.export)?;
        let flags = RenameFlags::from_bits(flags).ok_or_else(|| errno(libc::EINVAL))?;
        Ok(renameat_with(
            from.path_fd()?,
            from_name,
            to.path_fd()?,
            to_name,
            flags,
        )?)
    }

    /// FUSE_READLINK.
    pub(super) fn read_link(&self, inode: u64) -> io::Result<Vec<u8>> {
        let inode = self.inodes.get(inode)?;
        if inode.kind != libc::S_IFLNK {
            return Err(errno(libc::EINVAL));
        }
        let target = readlinkat(inode.path_fd()?.as_fd(), c"", Vec::new())?;
        Ok(target.into_bytes())
    }
}

/// A name of one component that is none of the special two: whatever else a guest sends could
/// lead out of the directory it names.
pub(super) fn check_name(name: &CStr) -> io::Result<()> {
    let name = name.to_bytes();
    if name.is_empty() || name.contains(&b'/') || matches!(name, b"." | b"..") {
        return Err(errno(libc::EINVAL));
    }
    Ok(())
}

/// The tree's root, which is always known and whose lookups are not counted.
fn tree_root_entry() -> Entry {
    Entry {
        inode: ROOT_ID,
        attr: tree_root_attributes(),
        ..Entry::default()
    }
}
