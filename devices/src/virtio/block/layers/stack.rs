//! The layers of a disk as one.

use std::io;

use super::{Extent, Layer, Place, TopLayer};
use crate::virtio::block::transfer::FileId;

/// The topmost layer.
pub enum Top {
    /// It takes writes.
    Writable(Box<dyn TopLayer>),
    /// It takes none.
    ReadOnly(Box<dyn Layer>),
}

/// Layers from top to bottom.
pub struct Stack {
    top: Top,
    below: Vec<Box<dyn Layer>>,
}

impl Stack {
    /// `top` over `below`, whose first layer is the upper one.
    #[must_use]
    pub fn new(top: Top, below: Vec<Box<dyn Layer>>) -> Self {
        Self { top, below }
    }

    /// The layer that takes writes.
    ///
    /// # Errors
    /// `ReadOnlyFilesystem` where there is none.
    pub fn writable(&mut self) -> io::Result<&mut dyn TopLayer> {
        match &mut self.top {
            Top::Writable(layer) => Ok(layer.as_mut()),
            Top::ReadOnly(_) => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        }
    }

    /// The disk's length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match &self.top {
            Top::Writable(layer) => layer.len(),
            Top::ReadOnly(layer) => layer.len(),
        }
    }

    /// Where the bytes from `offset` on lie: as many as lie together, at most `len`. The range
    /// is on the disk and not empty.
    ///
    /// # Errors
    /// Those of [`Layer::locate`].
    pub fn locate(&mut self, offset: u64, mut len: u64) -> io::Result<Extent> {
        let top: &mut dyn Layer = match &mut self.top {
            Top::Writable(layer) => layer.as_mut(),
            Top::ReadOnly(layer) => layer.as_mut(),
        };
        let below = self.below.iter_mut().map(|layer| layer.as_mut() as _);
        for layer in std::iter::once(top).chain(below) {
            let Some(rest @ 1..) = layer.len().checked_sub(offset) else {
                break;
            };
            let extent = layer.locate(offset, len.min(rest))?;
            if !matches!(extent.place, Place::Below) {
                return Ok(extent);
            }
            len = extent.len;
        }
        let place = Place::Zeros;
        Ok(Extent { place, len })
    }
}

/// A layer that is a file, byte for byte.
pub struct RawLayer {
    file: FileId,
    len: u64,
}

impl RawLayer {
    /// The first `len` bytes of `file`.
    #[must_use]
    pub fn new(file: FileId, len: u64) -> Self {
        Self { file, len }
    }
}

impl Layer for RawLayer {
    fn len(&self) -> u64 {
        self.len
    }

    fn locate(&mut self, offset: u64, len: u64) -> io::Result<Extent> {
        let file = self.file;
        let place = Place::File { file, offset };
        Ok(Extent { place, len })
    }
}
