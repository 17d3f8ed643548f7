//! What the guest has open: files and directories by the number its kernel was given.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::export::Export;

/// A regular file opened by the guest.
pub(super) struct OpenFile {
    /// The file, with the access mode the guest asked for; declared before the export, which has
    /// to be dropped after it.
    pub file: File,
    /// Where it is.
    pub export: Arc<Export>,
}

/// A directory opened by the guest.
pub(super) struct OpenDirectory {
    /// The directory and the position its next entries are read from.
    pub stream: Mutex<DirectoryStream>,
    /// Where it is.
    pub export: Arc<Export>,
}

/// A directory being read.
pub(super) struct DirectoryStream {
    /// The directory.
    pub directory: File,
    /// The cookie of the entry its descriptor stands behind; `None` when it is beyond what the
    /// guest has got.
    pub position: Option<u64>,
}

/// Something open that belongs to an export.
pub(super) trait OfExport {
    /// The export.
    fn export(&self) -> &Arc<Export>;
}

impl OfExport for OpenFile {
    fn export(&self) -> &Arc<Export> {
        &self.export
    }
}

impl OfExport for OpenDirectory {
    fn export(&self) -> &Arc<Export> {
        &self.export
    }
}

struct Table<T> {
    open: HashMap<u64, Arc<T>>,
    next: u64,
}

/// Open files, or open directories, by number.
pub(super) struct HandleTable<T> {
    table: Mutex<Table<T>>,
    max: usize,
}

impl<T: OfExport> HandleTable<T> {
    /// A table for at most `max` at once.
    pub fn new(max: usize) -> Self {
        Self {
            table: Mutex::new(Table {
                open: HashMap::new(),
                next: 1,
            }),
            max,
        }
    }

    /// Whether another one may be opened; asked before the host opens it.
    ///
    /// # Errors
    /// `ENFILE` when not.
    pub fn check_room(&self) -> io::Result<()> {
        if self.lock().open.len() >= self.max {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        }
        Ok(())
    }

    /// Keeps what was opened and returns its number.
    ///
    /// # Errors
    /// `ENFILE` when too many are open, `ESTALE` when the export has been removed.
    pub fn insert(&self, opened: T) -> io::Result<u64> {
        let mut table = self.lock();
        if table.open.len() >= self.max {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        }
        if opened.export().is_removed() {
            return Err(io::Error::from_raw_os_error(libc::ESTALE));
        }
        let number = table.next;
        table.next += 1;
        table.open.insert(number, Arc::new(opened));
        Ok(number)
    }

    /// What was opened under a number.
    ///
    /// # Errors
    /// `EBADF` when nothing was, or its export has been removed.
    pub fn get(&self, number: u64) -> io::Result<Arc<T>> {
        let table = self.lock();
        let opened = table.open.get(&number);
        opened
            .cloned()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    /// Forgets a number, which closes what it stood for.
    pub fn remove(&self, number: u64) {
        let closed = self.lock().open.remove(&number);
        // Closing may take its time (NFS): not under the lock.
        drop(closed);
    }

    /// Closes all of one export.
    pub fn close_export(&self, export_id: u64) {
        self.close_where(|opened| opened.export().id == export_id);
    }

    /// Closes all.
    pub fn clear(&self) {
        self.close_where(|_| true);
    }

    fn close_where(&self, matches: impl Fn(&T) -> bool) {
        let mut table = self.lock();
        let closed: Vec<_> = table.open.extract_if(|_, opened| matches(opened)).collect();
        drop(table);
        drop(closed);
    }

    fn lock(&self) -> MutexGuard<'_, Table<T>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
