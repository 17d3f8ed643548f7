//! Requests about the contents of regular files.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::{
    CreateIn, FOPEN_IN_KILL_SUIDGID, OpenOptions, WRITE_KILL_PRIV,
};
use fuse_backend_rs::api::filesystem::{Context, Entry, ZeroCopyReader, ZeroCopyWriter};
use rustix::fs::{
    FallocateFlags, Mode, OFlags, SeekFrom, copy_file_range, fallocate, fdatasync, fstatfs, fsync,
    openat, seek,
};

use super::super::attr::FileStat;
use super::super::credentials::{as_caller, without_fsetid};
use super::super::export::{CachePolicy, Export, Writes};
use super::super::exports::Tree;
use super::super::handles::OpenFile;
use super::super::inode::Inode;
use super::super::sys::{close, with_shared};
use super::errno;
use super::names::check_name;

/// Flags of open(2) that mean the same on the host. Not `O_DIRECT`, which passes alignment rules
/// of the host's disks on to the guest's buffers; not what names or creates.
const PASSED: OFlags = OFlags::RWMODE
    .union(OFlags::APPEND)
    .union(OFlags::TRUNC)
    .union(OFlags::SYNC)
    .union(OFlags::DSYNC);

/// The longest piece copied by one request in bytes: a thread is busy with it for a while, and a
/// pause of the machine waits for that.
const COPY_LEN_MAX: u64 = 64 << 20;

/// File systems whose files have no size before they are read (linux/magic.h).
const GENERATED: [libc::c_long; 10] = [
    libc::BPF_FS_MAGIC,
    libc::CGROUP_SUPER_MAGIC,
    libc::CGROUP2_SUPER_MAGIC,
    libc::DEBUGFS_MAGIC,
    libc::PROC_SUPER_MAGIC,
    libc::SECURITYFS_MAGIC,
    libc::SELINUX_MAGIC,
    libc::SYSFS_MAGIC,
    libc::TRACEFS_MAGIC,
    libc::RDTGROUP_SUPER_MAGIC,
];

/// `FOPEN_NOFLUSH` of linux/fuse.h (7.35): no FUSE_FLUSH when the guest closes the file.
const FOPEN_NOFLUSH: u32 = 1 << 5;

impl Tree {
    /// FUSE_OPEN: the number of the open file.
    pub(super) fn open_file(
        &self,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(u64, OpenOptions)> {
        self.open_inode(&*self.inodes.get(inode)?, flags, fuse_flags)
    }

    fn open_inode(
        &self,
        inode: &Inode,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(u64, OpenOptions)> {
        let flags = host_flags(flags)?;
        if writes(flags) {
            inode.export.check_writable(&inode.identity)?;
        }
        if inode.kind == libc::S_IFDIR {
            return Err(errno(libc::EISDIR));
        }
        self.files.check_room()?;
        let open = || inode.open(&self.proc_fd, flags);
        let kills = flags.contains(OFlags::TRUNC) && fuse_flags & FOPEN_IN_KILL_SUIDGID != 0;
        let file = if kills { without_fsetid(open) } else { open() }?;
        self.keep_open(file, &inode.export)
    }

    fn keep_open(&self, file: File, export: &Arc<Export>) -> io::Result<(u64, OpenOptions)> {
        let options = open_options(&file, export.cache)?;
        let handle = self.files.insert(OpenFile {
            file,
            export: Arc::clone(export),
        })?;
        Ok((handle, options))
    }

    /// FUSE_CREATE: makes and opens a file. One that is there already is opened as by FUSE_OPEN,
    /// which knows what must not be opened.
    pub(super) fn create_file(
        &self,
        caller: &Context,
        parent: u64,
        name: &CStr,
        args: &CreateIn,
    ) -> io::Result<(Entry, u64, OpenOptions)> {
        check_name(name)?;
        let directory = self.writable_inode(parent)?;
        self.files.check_room()?;
        let flags = host_flags(args.flags)?;
        let making = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(args.mode & 0o7777);
        let made = as_caller(caller, args.umask, || {
            Ok(openat(directory.path_fd()?, name, making, mode)?)
        });
        match made {
            Ok(file) => {
                let looked_at = self.proc_fd.reopen(file.as_fd(), OFlags::PATH)?;
                let entry = self.look_up_file(&directory, looked_at.into())?;
                let (handle, options) = self
                    .keep_open(file.into(), &directory.export)
                    .inspect_err(|_| self.inodes.forget(entry.inode, 1))?;
                Ok((entry, handle, options))
            }
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) && !exclusive(args.flags) => {
                let entry = self.look_up_child(&directory, name)?;
                let (handle, options) = self
                    .inodes
                    .get(entry.inode)
                    .and_then(|inode| self.open_inode(&inode, args.flags, args.fuse_flags))
                    .inspect_err(|_| self.inodes.forget(entry.inode, 1))?;
                Ok((entry, handle, options))
            }
            Err(error) => Err(error),
        }
    }

    /// FUSE_READ, straight into the guest's memory.
    pub(super) fn read_file(
        &self,
        handle: u64,
        to: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
    ) -> io::Result<usize> {
        let opened = self.files.get(handle)?;
        let size = usize::try_from(size)
            .unwrap_or(usize::MAX)
            .min(to.available_bytes());
        with_shared(&opened.file, |file| to.write_from(file, size, offset))
    }

    /// FUSE_WRITE, straight from the guest's memory.
    pub(super) fn write_file(
        &self,
        handle: u64,
        from: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        let opened = self.files.get(handle)?;
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let mut write = || with_shared(&opened.file, |file| from.read_to(file, size, offset));
        if fuse_flags & WRITE_KILL_PRIV != 0 {
            without_fsetid(write)
        } else {
            write()
        }
    }

    /// FUSE_FLUSH: a descriptor of the guest is closed. Network file systems send their data then
    /// and say whether it went well.
    pub(super) fn flush_file(&self, handle: u64) -> io::Result<()> {
        let opened = self.files.get(handle)?;
        close(opened.file.as_fd().try_clone_to_owned()?)
    }

    /// FUSE_FSYNC.
    pub(super) fn sync_file(&self, handle: u64, data_only: bool) -> io::Result<()> {
        let opened = self.files.get(handle)?;
        Ok(if data_only {
            fdatasync(&opened.file)
        } else {
            fsync(&opened.file)
        }?)
    }

    /// FUSE_FALLOCATE.
    pub(super) fn allocate(
        &self,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let opened = self.files.get(handle)?;
        let mode = FallocateFlags::from_bits(mode).ok_or_else(|| errno(libc::EOPNOTSUPP))?;
        Ok(fallocate(&opened.file, mode, offset, length)?)
    }

    /// FUSE_COPY_FILE_RANGE between open files at offsets: how many bytes were copied.
    pub(in super::super) fn copy_file_range(
        &self,
        (from, mut from_offset): (u64, u64),
        (to, mut to_offset): (u64, u64),
        len: u64,
    ) -> io::Result<u32> {
        let (from, to) = (self.files.get(from)?, self.files.get(to)?);
        let len = usize::try_from(len.min(COPY_LEN_MAX)).unwrap_or(usize::MAX);
        let copied = copy_file_range(
            &from.file,
            Some(&mut from_offset),
            &to.file,
            Some(&mut to_offset),
            len,
        )?;
        u32::try_from(copied).map_err(|_| errno(libc::EOVERFLOW))
    }

    /// FUSE_SYNCFS: writes back what the file systems of all exports have pending.
    pub(in super::super) fn sync_exports(&self) -> io::Result<()> {
        for export in self.exports_after(0) {
            if export.writes() != Writes::Nothing {
                export.sync(&self.proc_fd)?;
            }
        }
        Ok(())
    }

    /// FUSE_LSEEK, which a guest's kernel sends for data and holes only.
    pub(super) fn seek_file(&self, handle: u64, offset: u64, whence: u32) -> io::Result<u64> {
        let opened = self.files.get(handle)?;
        let position = match i32::try_from(whence) {
            Ok(libc::SEEK_DATA) => SeekFrom::Data(offset),
            Ok(libc::SEEK_HOLE) => SeekFrom::Hole(offset),
            _ => return Err(errno(libc::EINVAL)),
        };
        Ok(seek(&opened.file, position)?)
    }
}

fn host_flags(flags: u32) -> io::Result<OFlags> {
    let flags = OFlags::from_bits_retain(flags) & PASSED;
    // Both bits of the access mode are a mode of Linux's own, for ioctl(2) alone.
    if flags.contains(OFlags::WRONLY | OFlags::RDWR) {
        return Err(errno(libc::EINVAL));
    }
    Ok(flags)
}

fn writes(flags: OFlags) -> bool {
    flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC)
}

fn exclusive(flags: u32) -> bool {
    OFlags::from_bits_retain(flags).contains(OFlags::EXCL)
}

/// What the guest's kernel may do with an open file of an export.
fn open_options(file: &File, cache: CachePolicy) -> io::Result<OpenOptions> {
    Ok(match cache {
        // SAFETY: bits the library has no name for are bits all the same; they go to the guest.
        CachePolicy::Always => unsafe {
            OpenOptions::from_bits_unchecked(OpenOptions::KEEP_CACHE.bits() | FOPEN_NOFLUSH)
        },
        // The guest's page cache ends at a file's size.
        CachePolicy::Bounded(_) if is_generated(file)? => OpenOptions::DIRECT_IO,
        CachePolicy::Bounded(_) => OpenOptions::empty(),
    })
}

/// Whether the host's kernel makes up what is read, so that the file's size says nothing. An
/// ordinary empty file, which can be mapped as it grows, is none such.
fn is_generated(file: &File) -> io::Result<bool> {
    let stat = FileStat::of(file)?;
    // Of such files alone the file system is asked for, which a network one may take long to say.
    if stat.is_on_disk() || stat.size() != 0 {
        return Ok(false);
    }
    let magic = fstatfs(file)?.f_type;
    Ok(GENERATED.contains(&magic))
}
