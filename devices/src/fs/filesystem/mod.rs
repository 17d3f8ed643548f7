//! The guest's file requests, by what they are about: names, contents, directories, attributes.
//!
//! A name is resolved one component at a time and never through a symbolic link: the guest's
//! kernel follows those. So no request leaves the export it starts in. Who may do what is
//! decided by the guest's kernel from owners and modes (virtio-fs mounts check them); this side
//! decides what the guest as a whole may do.

mod attributes;
mod contents;
mod directories;
mod extended_attributes;
mod names;
#[cfg(test)]
mod tests;

use std::ffi::CStr;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{
    CreateIn, FsOptions, OpenOptions, ROOT_ID, SetattrValid, stat64, statvfs64,
};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, GetxattrReply, ListxattrReply, ZeroCopyReader,
    ZeroCopyWriter,
};

use super::attr::{FileStat, tree_root_statistics};
use super::export::Export;
use super::exports::Tree;
use super::inode::Inode;
use super::sys::file_system_statistics;

/// What is asked of the guest's kernel.
///
/// Not write-back caching: it would take sizes and times from the guest's kernel for all
/// exports, also for those that others write to. Not locks: they stay the guest's own.
const WANTED: FsOptions = FsOptions::from_bits_truncate(
    FsOptions::ASYNC_READ.bits()
        | FsOptions::ASYNC_DIO.bits()
        | FsOptions::ATOMIC_O_TRUNC.bits()
        | FsOptions::AUTO_INVAL_DATA.bits()
        | FsOptions::BIG_WRITES.bits()
        | FsOptions::CACHE_SYMLINKS.bits()
        | FsOptions::DONT_MASK.bits()
        | FsOptions::DO_READDIRPLUS.bits()
        | FsOptions::HANDLE_KILLPRIV_V2.bits()
        | FsOptions::INIT_EXT.bits()
        | FsOptions::MAX_PAGES.bits()
        | FsOptions::PARALLEL_DIROPS.bits()
        | FsOptions::READDIRPLUS_AUTO.bits(),
);

impl Tree {
    /// The answer that names `inode`, whose lookup has been counted.
    fn entry(&self, inode: &Inode, stat: &FileStat) -> Entry {
        let timeout = inode.export.cache.timeout();
        Entry {
            inode: inode.id,
            generation: 0,
            attr: stat.attributes(inode.volume),
            attr_flags: 0,
            attr_timeout: timeout,
            // Names in the tree's root come and go by the host's hand.
            entry_timeout: if inode.is_export_root() {
                Duration::ZERO
            } else {
                timeout
            },
        }
    }

    /// The file a request is about, in an export the guest may change.
    fn writable_inode(&self, id: u64) -> io::Result<Arc<Inode>> {
        let inode = self.inodes.get(id)?;
        inode.export.check_writable(&inode.identity)?;
        Ok(inode)
    }

    /// Fails with `EXDEV` unless both are in the same export.
    fn check_same_export(a: &Arc<Export>, b: &Arc<Export>) -> io::Result<()> {
        if a.id == b.id {
            Ok(())
        } else {
            Err(errno(libc::EXDEV))
        }
    }
}

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

impl FileSystem for Tree {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        // A new mount: whatever an earlier one knew is void.
        self.forget_guest();
        Ok(capable & WANTED)
    }

    fn destroy(&self) {
        self.forget_guest();
    }

    fn lookup(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.look_up_name(parent, name)
    }

    fn forget(&self, _: &Context, inode: u64, count: u64) {
        self.inodes.forget(inode, count);
    }

    fn batch_forget(&self, _: &Context, requests: Vec<(u64, u64)>) {
        self.inodes.forget_all(&requests);
    }

    fn getattr(
        &self,
        _: &Context,
        inode: u64,
        handle: Option<u64>,
    ) -> io::Result<(stat64, Duration)> {
        self.get_attributes(inode, handle)
    }

    fn setattr(
        &self,
        _: &Context,
        inode: u64,
        wanted: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        self.set_attributes(inode, &wanted, handle, valid)
    }

    fn readlink(&self, _: &Context, inode: u64) -> io::Result<Vec<u8>> {
        self.read_link(inode)
    }

    fn symlink(
        &self,
        caller: &Context,
        target: &CStr,
        parent: u64,
        name: &CStr,
    ) -> io::Result<Entry> {
        self.make_symlink(caller, target, parent, name)
    }

    fn mknod(
        &self,
        caller: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.make_node(caller, parent, name, (mode, umask), rdev)
    }

    fn mkdir(
        &self,
        caller: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.make_directory(caller, parent, name, (mode, umask))
    }

    fn unlink(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.remove_name(parent, name, rustix::fs::AtFlags::empty())
    }

    fn rmdir(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.remove_name(parent, name, rustix::fs::AtFlags::REMOVEDIR)
    }

    fn rename(
        &self,
        _: &Context,
        from: u64,
        from_name: &CStr,
        to: u64,
        to_name: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        self.rename_file((from, from_name), (to, to_name), flags)
    }

    fn link(&self, _: &Context, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.make_link(inode, parent, name)
    }

    fn open(
        &self,
        _: &Context,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let (handle, options) = self.open_file(inode, flags, fuse_flags)?;
        Ok((Some(handle), options, None))
    }

    fn create(
        &self,
        caller: &Context,
        parent: u64,
        name: &CStr,
        args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        let (entry, handle, options) = self.create_file(caller, parent, name, &args)?;
        Ok((entry, Some(handle), options, None))
    }

    fn read(
        &self,
        _: &Context,
        _inode: u64,
        handle: u64,
        to: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _lock_owner: Option<u64>,
        _flags: u32,
    ) -> io::Result<usize> {
        self.read_file(handle, to, size, offset)
    }

    fn write(
        &self,
        _: &Context,
        _inode: u64,
        handle: u64,
        from: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        _lock_owner: Option<u64>,
        _delayed_write: bool,
        _flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        self.write_file(handle, from, size, offset, fuse_flags)
    }

    fn flush(&self, _: &Context, _inode: u64, handle: u64, _lock_owner: u64) -> io::Result<()> {
        self.flush_file(handle)
    }

    fn fsync(&self, _: &Context, _inode: u64, data_only: bool, handle: u64) -> io::Result<()> {
        self.sync_file(handle, data_only)
    }

    fn fallocate(
        &self,
        _: &Context,
        _inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.allocate(handle, mode, offset, length)
    }

    fn lseek(
        &self,
        _: &Context,
        _inode: u64,
        handle: u64,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        self.seek_file(handle, offset, whence)
    }

    fn release(
        &self,
        _: &Context,
        _inode: u64,
        _flags: u32,
        handle: u64,
        _flush: bool,
        _flock_release: bool,
        _lock_owner: Option<u64>,
    ) -> io::Result<()> {
        self.files.remove(handle);
        Ok(())
    }

    fn statfs(&self, _: &Context, inode: u64) -> io::Result<statvfs64> {
        if inode == ROOT_ID {
            return Ok(tree_root_statistics());
        }
        file_system_statistics(self.inodes.get(inode)?.path_fd()?)
    }

    fn setxattr(
        &self,
        _: &Context,
        inode: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        self.set_xattr(inode, name, value, flags)
    }

    fn getxattr(
        &self,
        _: &Context,
        inode: u64,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        self.get_xattr(inode, name, size)
    }

    fn listxattr(&self, _: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        self.list_xattrs(inode, size)
    }

    fn removexattr(&self, _: &Context, inode: u64, name: &CStr) -> io::Result<()> {
        self.remove_xattr(inode, name)
    }

    fn opendir(
        &self,
        _: &Context,
        inode: u64,
        _flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        self.open_directory(inode)
    }

    fn readdir(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.read_directory(inode, handle, size, offset, add)
    }

    fn readdirplus(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.read_directory_plus(inode, handle, size, offset, add)
    }

    fn fsyncdir(&self, _: &Context, inode: u64, data_only: bool, handle: u64) -> io::Result<()> {
        self.sync_directory(inode, handle, data_only)
    }

    fn releasedir(&self, _: &Context, _inode: u64, _flags: u32, handle: u64) -> io::Result<()> {
        self.directories.remove(handle);
        Ok(())
    }
}
