//! One file that the guest's kernel knows, and the ways to reach it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::attr::{FileStat, Identity};
use super::export::Export;
use super::file_handle::MountedHandle;
use super::proc_fd::ProcFd;

/// How a file is found again.
#[derive(Debug)]
pub(super) enum Location {
    /// Held open with `O_PATH`.
    Held(OwnedFd),
    /// By its file handle.
    Handle(MountedHandle),
}

/// A file that the guest's kernel knows by number.
pub(super) struct Inode {
    /// The number, never given to another file.
    pub id: u64,
    /// Where it is; declared before the export, which has to be dropped after it.
    location: Location,
    /// The export it was found in.
    pub export: Arc<Export>,
    /// Which file of the host it is.
    pub identity: Identity,
    /// Its type: `S_IFMT` bits.
    pub kind: u32,
    /// The volume number of its device.
    pub volume: u64,
}

impl Inode {
    /// A file found in `export`.
    pub fn new(
        id: u64,
        location: Location,
        export: Arc<Export>,
        stat: &FileStat,
        volume: u64,
    ) -> Self {
        Self {
            id,
            location,
            export,
            identity: stat.identity(),
            kind: stat.kind(),
            volume,
        }
    }

    /// The file as a descriptor of the `O_PATH` sort.
    ///
    /// # Errors
    /// `ESTALE` when the file is gone from the host.
    pub fn path_fd(&self) -> io::Result<PathFd<'_>> {
        match &self.location {
            Location::Held(fd) => Ok(PathFd::Held(fd.as_fd())),
            Location::Handle(handle) => Ok(PathFd::Opened(handle.open(libc::O_PATH)?)),
        }
    }

    /// Opens the file with `flags`. Files whose opening has effects (devices, FIFOs) are refused:
    /// a guest's kernel has its own behind those names.
    ///
    /// # Errors
    /// `EACCES` for such a file, `ELOOP` for a symbolic link; others of open(2).
    pub fn open(&self, proc_fd: &ProcFd, flags: OFlags) -> io::Result<File> {
        match self.kind {
            libc::S_IFREG | libc::S_IFDIR => {}
            libc::S_IFLNK => return Err(io::Error::from_raw_os_error(libc::ELOOP)),
            _ => return Err(io::Error::from_raw_os_error(libc::EACCES)),
        }
        match &self.location {
            Location::Held(fd) => proc_fd.reopen(fd, flags),
            Location::Handle(handle) => {
                let flags = i32::try_from(flags.bits()).unwrap_or(libc::O_RDONLY);
                Ok(handle.open(flags)?.into())
            }
        }
    }

    /// What the host says about the file now.
    ///
    /// # Errors
    /// Those of [`Self::path_fd`] and statx(2).
    pub fn stat(&self) -> io::Result<FileStat> {
        FileStat::of(self.path_fd()?)
    }

    /// Whether it is the root of its export.
    pub fn is_export_root(&self) -> bool {
        self.export.is_root(&self.identity)
    }

    /// Whether it keeps a descriptor of its own open.
    pub fn is_held(&self) -> bool {
        matches!(self.location, Location::Held(_))
    }

    /// Its file handle, if it is found by one.
    pub fn handle(&self) -> Option<&MountedHandle> {
        match &self.location {
            Location::Held(_) => None,
            Location::Handle(handle) => Some(handle),
        }
    }
}

/// A descriptor of the `O_PATH` sort, ours for a request or kept by the inode.
#[derive(Debug)]
pub(super) enum PathFd<'a> {
    /// The inode's.
    Held(BorrowedFd<'a>),
    /// Opened for this request.
    Opened(OwnedFd),
}

impl AsFd for PathFd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Held(fd) => *fd,
            Self::Opened(fd) => fd.as_fd(),
        }
    }
}
