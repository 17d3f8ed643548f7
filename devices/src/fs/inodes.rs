//! The files that the guest's kernel knows, by its lookup count.
//!
//! The kernel counts every answer that named a file and gives the count back when it forgets the
//! file (FUSE_FORGET). A file stays here for that time, held open at first; past a budget it is
//! kept as a file handle where the host's file system has such, so that a guest walking a large
//! tree does not run the host out of descriptors.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuse_backend_rs::abi::fuse_abi::ROOT_ID;

use super::attr::{FileStat, Identity};
use super::export::Export;
use super::file_handle::MountedHandle;
use super::inode::{Inode, Location};
use super::limits::{INODES_MAX, OpenFileBudget};
use super::proc_fd::ProcFd;

/// A file and how often the guest was told of it.
struct Known {
    inode: Arc<Inode>,
    lookups: u64,
}

struct Table {
    known: HashMap<u64, Known>,
    /// By export and identity: hard links are one file.
    by_identity: HashMap<(u64, Identity), u64>,
    held: usize,
    next_id: u64,
}

/// All files the guest's kernel knows.
pub(super) struct InodeTable {
    table: Mutex<Table>,
    budget: OpenFileBudget,
}

impl InodeTable {
    /// An empty table.
    pub fn new(budget: OpenFileBudget) -> Self {
        let table = Table {
            known: HashMap::new(),
            by_identity: HashMap::new(),
            held: 0,
            next_id: ROOT_ID + 1,
        };
        Self {
            table: Mutex::new(table),
            budget,
        }
    }

    /// The file of a number the guest was told.
    ///
    /// # Errors
    /// `EROFS` for the tree's root, which is no file of the host; `ESTALE` for a number the guest
    /// has forgotten, or whose export is gone.
    pub fn get(&self, id: u64) -> io::Result<Arc<Inode>> {
        if id == ROOT_ID {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        let table = self.lock();
        let known = table.known.get(&id).ok_or_else(stale)?;
        Ok(Arc::clone(&known.inode))
    }

    /// Counts one lookup of `file`, found in `export`, and returns what it is known as.
    ///
    /// # Errors
    /// `ENFILE` when the guest knows too many files, `ESTALE` when the export has been removed.
    pub fn look_up(
        &self,
        proc_fd: &ProcFd,
        export: &Arc<Export>,
        file: OwnedFd,
        stat: &FileStat,
        volume: u64,
    ) -> io::Result<Arc<Inode>> {
        let key = (export.id, stat.identity());
        let held_early = {
            let mut table = self.lock();
            match table.count_lookup(&key, |inode| inode.is_held()) {
                Some(inode) => return Ok(inode),
                None => {
                    !table.by_identity.contains_key(&key) && table.held < self.budget.held_early
                }
            }
        };
        let handle = if held_early {
            None
        } else {
            export.handle_of(proc_fd, &file, stat)?
        };

        let mut table = self.lock();
        // The same descriptor or the same handle: the same file. An equal identity alone may be
        // that of a deleted file whose inode number has been used again.
        let same = |inode: &Inode| match (inode.handle(), &handle) {
            (None, _) => true,
            (Some(known), Some(new)) => known.handle == new.handle,
            (Some(_), None) => false,
        };
        if let Some(inode) = table.count_lookup(&key, same) {
            return Ok(inode);
        }
        self.check_room(&table, handle.as_ref())?;
        if export.is_removed() {
            return Err(stale());
        }
        let location = handle.map_or(Location::Held(file), Location::Handle);
        Ok(table.insert(key, location, export, stat, volume))
    }

    fn check_room(&self, table: &Table, handle: Option<&MountedHandle>) -> io::Result<()> {
        let no_descriptor = handle.is_none() && table.held >= self.budget.held;
        if table.known.len() >= INODES_MAX || no_descriptor {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        }
        Ok(())
    }

    /// Takes `count` lookups back.
    pub fn forget(&self, id: u64, count: u64) {
        self.forget_all(&[(id, count)]);
    }

    /// Takes lookups back, a count for each number.
    pub fn forget_all(&self, requests: &[(u64, u64)]) {
        let mut gone = Vec::new();
        let mut table = self.lock();
        for (id, count) in requests {
            gone.extend(table.forget(*id, *count));
        }
        // Descriptors are closed without the lock.
        drop(table);
        drop(gone);
    }

    /// Forgets all files of one export.
    pub fn forget_export(&self, export_id: u64) {
        self.forget_where(|inode| inode.export.id == export_id);
    }

    /// Forgets all.
    pub fn clear(&self) {
        self.forget_where(|_| true);
    }

    fn forget_where(&self, matches: impl Fn(&Inode) -> bool) {
        let mut table = self.lock();
        let of_export: Vec<u64> = table
            .known
            .values()
            .filter(|k| matches(&k.inode))
            .map(|k| k.inode.id)
            .collect();
        let gone: Vec<_> = of_export
            .into_iter()
            .filter_map(|id| table.remove(id))
            .collect();
        drop(table);
        drop(gone);
    }

    /// How many files the guest knows.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.lock().known.len()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Counts a lookup of the file with this identity, if it is there and `same` agrees.
    fn count_lookup(
        &mut self,
        key: &(u64, Identity),
        same: impl FnOnce(&Inode) -> bool,
    ) -> Option<Arc<Inode>> {
        let id = self.by_identity.get(key)?;
        let known = self.known.get_mut(id).filter(|known| same(&known.inode))?;
        known.lookups = known.lookups.saturating_add(1);
        Some(Arc::clone(&known.inode))
    }

    fn insert(
        &mut self,
        key: (u64, Identity),
        location: Location,
        export: &Arc<Export>,
        stat: &FileStat,
        volume: u64,
    ) -> Arc<Inode> {
        let id = self.next_id;
        self.next_id += 1;
        let inode = Arc::new(Inode::new(id, location, Arc::clone(export), stat, volume));
        self.held += usize::from(inode.is_held());
        self.known.insert(
            id,
            Known {
                inode: Arc::clone(&inode),
                lookups: 1,
            },
        );
        self.by_identity.insert(key, id);
        inode
    }

    fn forget(&mut self, id: u64, count: u64) -> Option<Arc<Inode>> {
        let known = self.known.get_mut(&id)?;
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups > 0 {
            return None;
        }
        self.remove(id)
    }

    fn remove(&mut self, id: u64) -> Option<Arc<Inode>> {
        let inode = self.known.remove(&id)?.inode;
        self.held -= usize::from(inode.is_held());
        let key = (inode.export.id, inode.identity);
        // A newer file may have taken over the identity.
        if self.by_identity.get(&key) == Some(&id) {
            self.by_identity.remove(&key);
        }
        Some(inode)
    }
}

fn stale() -> io::Error {
    io::Error::from_raw_os_error(libc::ESTALE)
}
