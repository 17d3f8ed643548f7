//! Volumes that are machines' disks. An empty one is filled from the disk of the container's image, once:
//! a fill that was interrupted is seen and done again, and what holds data is never written to.

mod block;
mod fill;
mod folder;
mod record;

use std::fs::File;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use fill::{Content, Fill, Progress};
pub use record::{Origin, Record, random};

use super::source::Volume;
use crate::host::{HostError, HostOps};

/// The disk's file in a folder.
pub const DISK_FILE: &str = "disk.img";

/// A volume's disk.
#[derive(Debug)]
pub struct StoredDisk {
    /// The file or block device.
    pub file: File,
    /// How much of it, from its begin, is the disk; the rest is this program's.
    pub len: u64,
    /// Whether it may only be read.
    pub read_only: bool,
    /// What is noted of its origin, unless it was not filled by this program.
    pub record: Option<Record>,
}

/// What was found in a volume.
#[derive(Debug)]
pub enum Found {
    /// A disk.
    Disk(StoredDisk),
    /// Nothing yet: it is to be filled.
    Empty(Fill),
}

/// Why a volume is no disk.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Privileged work failed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// It is empty, and there is nothing to fill it from.
    #[error("{volume} is empty, and the image has no disk in /disk to fill it from")]
    Empty {
        /// Which volume.
        volume: &'static str,
    },
    /// It would have to be written to.
    #[error("{volume} is empty and read-only: it cannot be filled from the image's disk")]
    ReadOnly {
        /// Which volume.
        volume: &'static str,
    },
    /// The image's disk does not fit.
    #[error("{volume} has {room} bytes, the image's disk {needed}")]
    TooSmall {
        /// Which volume.
        volume: &'static str,
        /// Its size.
        room: u64,
        /// What it takes.
        needed: u64,
    },
    /// Somebody put something else in the disk's place.
    #[error("{0} is no regular file")]
    NoFile(PathBuf),
    /// The host failed to do something with it.
    #[error("cannot {step} {volume}")]
    Io {
        /// What was to be done.
        step: &'static str,
        /// Which volume.
        volume: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

/// What errors call a block volume, and one with a file system.
const BLOCK: &str = "the block volume with devicePath /";
const FOLDER: &str = "the volume mounted at /disk";

fn failed(
    volume: &'static str,
    step: &'static str,
) -> impl FnOnce(io::Error) -> StoreError + Clone {
    move |source| StoreError::Io {
        step,
        volume,
        source,
    }
}

/// A block device that is a disk as a whole, whatever it holds.
///
/// # Errors
/// [`StoreError::Io`].
pub fn whole_device(mut file: File, read_only: bool) -> Result<StoredDisk, StoreError> {
    let len = io::Seek::seek(&mut file, io::SeekFrom::End(0));
    Ok(StoredDisk {
        len: len.map_err(failed("a block volume", "find the size of"))?,
        file,
        read_only,
        record: None,
    })
}

/// Looks into `volume`; `origin` tells of the image's disk, if there is one.
///
/// # Errors
/// [`StoreError`]; nothing is changed but where the record of a device lies that has grown.
pub fn open(
    host: &dyn HostOps,
    volume: &Volume,
    origin: Option<Origin>,
) -> Result<Found, StoreError> {
    match volume {
        Volume::Block(disk) => block::open(host.open_disk(disk)?, disk.read_only, origin),
        Volume::Folder { path, read_only } => folder::open(path, *read_only, origin),
    }
}
