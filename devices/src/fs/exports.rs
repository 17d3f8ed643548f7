//! The tree a guest sees: a root whose names are exports that come and go.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use thiserror::Error;

use super::export::{Export, ExportOptions, Writes};
use super::handles::{HandleTable, OpenDirectory, OpenFile};
use super::inodes::InodeTable;
use super::limits::OpenFileBudget;
use super::proc_fd::ProcFd;

/// How long [`Exports::remove`] waits for requests that are under way in the export.
const REMOVE_WAIT: Duration = Duration::from_secs(5);

/// The longest name of an export in bytes (`NAME_MAX`).
const NAME_LEN_MAX: usize = 255;

/// Why an export could not be added or removed.
#[derive(Debug, Error)]
pub enum ExportError {
    /// The name is no file name.
    #[error("{0:?} is not a file name")]
    Name(String),
    /// Another export has this name.
    #[error("there is an export {0:?} already")]
    Exists(String),
    /// No export has this name.
    #[error("there is no export {0:?}")]
    Missing(String),
    /// The export is gone for the guest, but a request that began before is still under way and
    /// keeps files of it open.
    #[error("a request of the guest on export {0:?} does not end")]
    Busy(String),
    /// The host refused.
    #[error("cannot {action}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

/// What a guest sees and what it holds of it. Requests are served by its implementation of
/// `FileSystem` (`filesystem/`).
pub(super) struct Tree {
    listed: Mutex<Vec<Listed>>,
    next_export: AtomicU64,
    volume_counter: Arc<AtomicU64>,
    /// The files the guest's kernel knows.
    pub inodes: InodeTable,
    /// The files it has open.
    pub files: HandleTable<OpenFile>,
    /// The directories it has open.
    pub directories: HandleTable<OpenDirectory>,
    /// The way to open held files.
    pub proc_fd: ProcFd,
}

/// An export in the tree's root.
struct Listed {
    export: Arc<Export>,
    /// Disconnected when nothing refers to the export any more.
    gone: mpsc::Receiver<Infallible>,
}

impl Tree {
    /// An empty tree that keeps within `budget`.
    ///
    /// # Errors
    /// When `/proc/self/fd` cannot be opened.
    pub fn new(budget: OpenFileBudget) -> io::Result<Self> {
        Ok(Self {
            listed: Mutex::default(),
            next_export: AtomicU64::new(1),
            volume_counter: Arc::new(AtomicU64::new(1)),
            inodes: InodeTable::new(budget),
            files: HandleTable::new(budget.opened),
            directories: HandleTable::new(budget.opened),
            proc_fd: ProcFd::open()?,
        })
    }

    /// The export of a name in the root.
    pub fn export(&self, name: &[u8]) -> Option<Arc<Export>> {
        let listed = self.lock();
        let found = listed
            .iter()
            .find(|listed| listed.export.name.as_bytes() == name);
        found.map(|listed| Arc::clone(&listed.export))
    }

    /// The exports whose IDs are larger than `id`, in the order they were added.
    pub fn exports_after(&self, id: u64) -> Vec<Arc<Export>> {
        let listed = self.lock();
        let exports = listed.iter().map(|listed| &listed.export);
        exports.filter(|export| export.id > id).cloned().collect()
    }

    /// Lets go of all the guest knows and has open; exports stay.
    pub fn forget_guest(&self) {
        self.files.clear();
        self.directories.clear();
        self.inodes.clear();
    }

    fn add(&self, name: &str, source: OwnedFd, options: ExportOptions) -> Result<(), ExportError> {
        if !is_file_name(name) {
            return Err(ExportError::Name(name.to_owned()));
        }
        let id = self.next_export.fetch_add(1, Ordering::Relaxed);
        let volumes = Arc::clone(&self.volume_counter);
        let (export, gone) = Export::new(id, name, source, options, volumes).map_err(|source| {
            ExportError::Host {
                action: "look at the export's root",
                source,
            }
        })?;
        let mut listed = self.lock();
        if listed.iter().any(|listed| listed.export.name == name) {
            return Err(ExportError::Exists(name.to_owned()));
        }
        listed.push(Listed {
            export: Arc::new(export),
            gone,
        });
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), ExportError> {
        let Listed { export, gone } = {
            let mut listed = self.lock();
            let position = listed.iter().position(|listed| listed.export.name == name);
            let position = position.ok_or_else(|| ExportError::Missing(name.to_owned()))?;
            listed.remove(position)
        };
        // From here on nothing of it enters the tables.
        export.mark_removed();
        self.files.close_export(export.id);
        self.directories.close_export(export.id);
        self.inodes.forget_export(export.id);
        drop(export);
        match gone.recv_timeout(REMOVE_WAIT) {
            Err(mpsc::RecvTimeoutError::Timeout) => Err(ExportError::Busy(name.to_owned())),
            Err(mpsc::RecvTimeoutError::Disconnected) => Ok(()),
            Ok(never) => match never {},
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Listed>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_file_name(name: &str) -> bool {
    let reserved = matches!(name, "" | "." | "..");
    !reserved && name.len() <= NAME_LEN_MAX && !name.contains(['/', '\0'])
}

/// The tree of one guest, to add exports to and to take them away from; clones are the same tree.
#[derive(Clone)]
pub struct Exports {
    tree: Arc<Tree>,
}

impl Exports {
    /// An empty tree. What it may hold open for a guest is a share of the process's limit as it
    /// stands: call [`super::raise_open_files_limit`] before.
    ///
    /// # Errors
    /// [`ExportError::Host`] when `/proc` is not there.
    pub fn new() -> Result<Self, ExportError> {
        Self::with_budget(OpenFileBudget::of_process())
    }

    pub(super) fn with_budget(budget: OpenFileBudget) -> Result<Self, ExportError> {
        let tree = Tree::new(budget).map_err(|source| ExportError::Host {
            action: "open /proc/self/fd",
            source,
        })?;
        Ok(Self {
            tree: Arc::new(tree),
        })
    }

    /// Makes a directory or any single file of the host appear as `name` in the tree's root.
    /// `source` may be opened with `O_PATH`. Whatever lies below it belongs to the guest, mounts
    /// included; nothing else does.
    ///
    /// # Errors
    /// [`ExportError::Name`], [`ExportError::Exists`], [`ExportError::Host`].
    pub fn add(
        &self,
        name: &str,
        source: OwnedFd,
        options: ExportOptions,
    ) -> Result<(), ExportError> {
        self.tree.add(name, source, options)
    }

    /// Takes an export away: what the guest still knows of it fails with `ESTALE`, what it has
    /// open with `EBADF`. Blocks until requests under way in it have ended, for at most 5 s. Once
    /// this succeeded, no descriptor keeps the export's file systems busy.
    ///
    /// # Errors
    /// [`ExportError::Missing`]; [`ExportError::Busy`] when a request does not end in time, upon
    /// whose end the rest is released.
    pub fn remove(&self, name: &str) -> Result<(), ExportError> {
        self.tree.remove(name)
    }

    /// Lets the guest change at least this much of an export: one that a second container uses
    /// as well, and may write to, stays one export, with one cache and one set of locks.
    ///
    /// # Errors
    /// [`ExportError::Missing`].
    pub fn allow_writes(&self, name: &str, writes: Writes) -> Result<(), ExportError> {
        let export = self.tree.export(name.as_bytes());
        let export = export.ok_or_else(|| ExportError::Missing(name.to_owned()))?;
        export.allow_writes(writes);
        Ok(())
    }

    /// The names in the order they were added.
    #[must_use]
    pub fn list(&self) -> Vec<String> {
        self.tree
            .exports_after(0)
            .iter()
            .map(|export| export.name.clone())
            .collect()
    }

    /// What serves the guest's requests.
    pub(super) fn tree(&self) -> Arc<Tree> {
        Arc::clone(&self.tree)
    }
}
