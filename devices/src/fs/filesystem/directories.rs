//! Requests about directories: opening and listing them.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};

use fuse_backend_rs::abi::fuse_abi::{OpenOptions, ROOT_ID};
use fuse_backend_rs::api::filesystem::{DirEntry, Entry};
use rustix::fs::{FileType, OFlags, RawDir, SeekFrom, fdatasync, fsync, seek};

use super::super::attr::{TREE_ROOT_INO, guest_ino};
use super::super::export::CachePolicy;
use super::super::exports::Tree;
use super::super::handles::{DirectoryStream, OpenDirectory};
use super::super::inode::Inode;
use super::errno;

/// The longest piece of a directory read from the host at once, in bytes.
const PIECE_MAX: usize = 32 << 10;
/// The shortest: an entry with the longest name takes 280 bytes.
const PIECE_MIN: usize = 1 << 10;

/// The tree root's first listing positions: behind "." and behind "..". An export's is its ID and
/// these, which no removal of another one shifts.
const ROOT_DOT: u64 = 1;
const ROOT_DOT_DOT: u64 = 2;

/// Takes an entry of a listing; zero when there is no room for it.
type AddEntry<'a> = dyn FnMut(DirEntry<'_>) -> io::Result<usize> + 'a;
/// The same with what a lookup of the entry answers.
type AddEntryPlus<'a> = dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize> + 'a;

impl Tree {
    /// FUSE_OPENDIR. The tree's root needs no number.
    pub(super) fn open_directory(&self, inode: u64) -> io::Result<(Option<u64>, OpenOptions)> {
        if inode == ROOT_ID {
            return Ok((None, OpenOptions::empty()));
        }
        let inode = self.inodes.get(inode)?;
        if inode.kind != libc::S_IFDIR {
            return Err(errno(libc::ENOTDIR));
        }
        self.directories.check_room()?;
        let directory = inode.open(&self.proc_fd, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let stream = Mutex::new(DirectoryStream {
            directory,
            position: Some(0),
        });
        let options = match inode.export.cache {
            CachePolicy::Always => OpenOptions::CACHE_DIR | OpenOptions::KEEP_CACHE,
            CachePolicy::Bounded(_) => OpenOptions::empty(),
        };
        let export = Arc::clone(&inode.export);
        Ok((
            Some(self.directories.insert(OpenDirectory { stream, export })?),
            options,
        ))
    }

    /// FUSE_READDIR.
    pub(super) fn read_directory(
        &self,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut AddEntry<'_>,
    ) -> io::Result<()> {
        if inode == ROOT_ID {
            return self.list_root(offset, &mut |entry, _| add(entry));
        }
        let inode = self.inodes.get(inode)?;
        self.list(&inode, handle, piece_len(size), offset, &mut |entry, _| {
            add(entry)
        })
    }

    /// FUSE_READDIRPLUS: each entry comes with what looking it up would answer, and that lookup
    /// is counted.
    pub(super) fn read_directory_plus(
        &self,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut AddEntryPlus<'_>,
    ) -> io::Result<()> {
        if inode == ROOT_ID {
            return self.list_root(offset, &mut |entry, name| {
                self.add_looked_up(entry, add, || self.look_up_export(name.to_bytes()))
            });
        }
        let inode = self.inodes.get(inode)?;
        // An entry takes the guest about four times the room it takes the host here.
        self.list(
            &inode,
            handle,
            piece_len(size / 4),
            offset,
            &mut |entry, name| self.add_looked_up(entry, add, || self.look_up_child(&inode, name)),
        )
    }

    /// Adds an entry with its lookup; without one when that fails, which shows the guest the name
    /// all the same.
    fn add_looked_up(
        &self,
        mut entry: DirEntry<'_>,
        add: &mut AddEntryPlus<'_>,
        look_up: impl FnOnce() -> io::Result<Entry>,
    ) -> io::Result<usize> {
        if matches!(entry.name, b"." | b"..") {
            return add(entry, Entry::default());
        }
        let found = look_up().unwrap_or_default();
        if found.inode != 0 {
            entry.ino = found.attr.st_ino;
        }
        let added = add(entry, found);
        if !matches!(added, Ok(len) if len > 0) && found.inode != 0 {
            // The guest does not get this answer.
            self.inodes.forget(found.inode, 1);
        }
        added
    }

    /// Lists the tree's root from `offset` on.
    fn list_root(
        &self,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>, &CStr) -> io::Result<usize>,
    ) -> io::Result<()> {
        for (position, name) in [(ROOT_DOT, c"."), (ROOT_DOT_DOT, c"..")] {
            if offset < position && add(root_entry(TREE_ROOT_INO, position, name), name)? == 0 {
                return Ok(());
            }
        }
        for export in self.exports_after(offset.saturating_sub(ROOT_DOT_DOT)) {
            let Ok(name) = std::ffi::CString::new(export.name.as_bytes()) else {
                continue;
            };
            let entry = root_entry(export.root_ino(), export.id + ROOT_DOT_DOT, &name);
            if add(entry, &name)? == 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Lists a directory from `offset` on, in pieces of `piece` bytes, until there is no more
    /// room or no more entry.
    fn list(
        &self,
        inode: &Inode,
        handle: u64,
        piece: usize,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>, &CStr) -> io::Result<usize>,
    ) -> io::Result<()> {
        let opened = self.directories.get(handle)?;
        let mut stream = opened.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = &mut *stream;
        if stream.position != Some(offset) {
            seek(&stream.directory, SeekFrom::Start(offset))?;
        }
        // Unknown until all that was read has been taken.
        stream.position = None;
        let mut last = offset;
        let mut buffer = vec![MaybeUninit::uninit(); piece];
        let mut entries = RawDir::new(&stream.directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                // What the guest was told of so far must reach it.
                Err(_) if last != offset => return Ok(()),
                entry => entry?,
            };
            let name = entry.file_name();
            let ino = match name.to_bytes() {
                b".." if inode.is_export_root() => TREE_ROOT_INO,
                _ => guest_ino(inode.volume, entry.ino()),
            };
            let listed = DirEntry {
                ino,
                offset: entry.next_entry_cookie(),
                type_: entry_type(entry.file_type()),
                name: name.to_bytes(),
            };
            let next = listed.offset;
            if add(listed, name)? == 0 {
                return Ok(());
            }
            last = next;
        }
        stream.position = Some(last);
        Ok(())
    }

    /// FUSE_FSYNCDIR.
    pub(super) fn sync_directory(
        &self,
        inode: u64,
        handle: u64,
        data_only: bool,
    ) -> io::Result<()> {
        if inode == ROOT_ID {
            return Ok(());
        }
        let opened = self.directories.get(handle)?;
        let stream = opened.stream.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(if data_only {
            fdatasync(&stream.directory)
        } else {
            fsync(&stream.directory)
        }?)
    }
}

fn root_entry(ino: u64, offset: u64, name: &CStr) -> DirEntry<'_> {
    DirEntry {
        ino,
        offset,
        type_: u32::from(libc::DT_UNKNOWN),
        name: name.to_bytes(),
    }
}

fn piece_len(size: u32) -> usize {
    usize::try_from(size)
        .unwrap_or(PIECE_MAX)
        .clamp(PIECE_MIN, PIECE_MAX)
}

fn entry_type(kind: FileType) -> u32 {
    u32::from(match kind {
        FileType::RegularFile => libc::DT_REG,
        FileType::Directory => libc::DT_DIR,
        FileType::Symlink => libc::DT_LNK,
        FileType::Fifo => libc::DT_FIFO,
        FileType::Socket => libc::DT_SOCK,
        FileType::CharacterDevice => libc::DT_CHR,
        FileType::BlockDevice => libc::DT_BLK,
        FileType::Unknown => libc::DT_UNKNOWN,
    })
}
