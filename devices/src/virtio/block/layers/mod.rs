//! Disks made of layers: what the topmost layer does not have, the ones below it have.
//!
//! Layers only say where bytes lie, from what they keep in memory and short reads of their
//! metadata. The data are transferred by [`LayeredDisk`], many operations side by side.

mod busy;
mod cow;
mod disk;
mod plan;
mod stack;
mod zero;

use std::io;
use std::sync::Arc;

pub use self::cow::{CowLayer, TooLong};
pub use self::disk::LayeredDisk;
pub use self::stack::{RawLayer, Stack, Top};
use super::transfer::FileId;

/// Where bytes of a disk lie.
#[derive(Clone, Debug)]
pub enum Place {
    /// In a file, from an offset on.
    File {
        /// The file.
        file: FileId,
        /// Where in it.
        offset: u64,
    },
    /// Nowhere: they are zeros.
    Zeros,
    /// Not in this layer.
    Below,
    /// In memory: a compressed cluster, expanded.
    Bytes {
        /// The cluster.
        bytes: Arc<[u8]>,
        /// Where in it.
        skip: usize,
    },
}

/// Some bytes that lie together.
#[derive(Clone, Debug)]
pub struct Extent {
    /// Where the first of them lies.
    pub place: Place,
    /// How many; at least one.
    pub len: u64,
}

/// A layer of a disk. Offsets are those of the disk.
pub trait Layer: Send {
    /// Its length in bytes. Behind it are zeros.
    fn len(&self) -> u64;
    /// Where the bytes from `offset` on lie: as many as lie together, at most `len`. The range
    /// is in the layer and not empty.
    ///
    /// # Errors
    /// The layer's metadata cannot be read, or are wrong there.
    fn locate(&mut self, offset: u64, len: u64) -> io::Result<Extent>;
}

/// Where a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The file and the offset in it of what is there already; none when the layer has to make
    /// room first.
    pub place: Option<(FileId, u64)>,
    /// For how many bytes that is so; at least one.
    pub len: u64,
}

/// Room for whole clusters that the layer does not have yet, and that no one sees before it is
/// committed.
#[derive(Debug)]
pub struct Reservation {
    /// The first byte on the disk.
    pub offset: u64,
    /// How many: whole clusters, except at the end of the disk.
    pub len: u64,
    /// The file that has the room.
    pub file: FileId,
    /// Where in it.
    pub at: u64,
    /// Whether it reads as zeros now.
    pub is_zero: bool,
}

/// How whole clusters become zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// They are, as of now.
    Done,
    /// By making a hole in the file, where they are.
    InPlace(FileId, u64),
    /// By new room that reads as zeros.
    Reserve,
}

/// What a flush has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushStep {
    /// The file's data have to reach the medium; then [`TopLayer::continue_flush`].
    Sync(FileId),
    /// Nothing.
    Done,
}

/// The layer that takes the writes.
pub trait TopLayer: Layer {
    /// The unit of [`Self::reserve`], a power of two.
    fn cluster_len(&self) -> u64;
    /// Where a write to the bytes from `offset` on goes, at most `len` of them.
    ///
    /// # Errors
    /// As [`Layer::locate`].
    fn target(&mut self, offset: u64, len: u64) -> io::Result<Target>;
    /// Makes room for whole clusters from `offset` on, for `len` bytes at most and one cluster
    /// at least.
    ///
    /// # Errors
    /// There is no room, or the layer's metadata cannot be read.
    fn reserve(&mut self, offset: u64, len: u64) -> io::Result<Reservation>;
    /// The reserved room has its data: from now on the layer has those clusters.
    ///
    /// # Errors
    /// The layer's metadata cannot be read; the layer may have a part of them.
    fn commit(&mut self, reservation: &Reservation) -> io::Result<()>;
    /// The reserved room is not needed; whatever may have been written to it.
    fn cancel(&mut self, reservation: Reservation);
    /// How `len` bytes at most of whole clusters from `offset` on become zeros, and for how many
    /// bytes that is so. With `keep_room` they keep their room in the file.
    ///
    /// # Errors
    /// As [`Layer::locate`].
    fn zero(&mut self, offset: u64, len: u64, keep_room: bool) -> io::Result<(Zeroing, u64)>;
    /// Begins to make durable what was committed.
    ///
    /// # Errors
    /// Metadata cannot be written. They are written again by the next flush.
    fn begin_flush(&mut self) -> io::Result<FlushStep>;
    /// Goes on after the file was synchronised.
    ///
    /// # Errors
    /// As [`Self::begin_flush`].
    fn continue_flush(&mut self) -> io::Result<FlushStep>;
    /// Nothing more will come: writes what is only in memory.
    ///
    /// # Errors
    /// Metadata cannot be written.
    fn close(&mut self) -> io::Result<()>;
}

#[cfg(test)]
pub(super) mod model;
#[cfg(test)]
mod tests;
