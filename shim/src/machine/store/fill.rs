//! Fills an empty volume from an image's disk.

use std::io;

use super::block::BlockFill;
use super::folder::FolderFill;
use super::{StoreError, StoredDisk};

/// Bytes copied at a time. Holes are kept in such pieces, too.
pub(super) const PIECE_LEN: u64 = 1 << 20;

/// What a volume is filled with.
pub trait Content {
    /// Its length in bytes.
    fn disk_len(&self) -> u64;

    /// Fills `data` with what lies at `offset`.
    ///
    /// # Errors
    /// What the image's disk said.
    fn read_at(&mut self, data: &mut [u8], offset: u64) -> io::Result<()>;
}

/// Is told how many bytes of how many are done.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// A fill that is to be done.
#[derive(Debug)]
pub enum Fill {
    /// Of a block device.
    Block(BlockFill),
    /// Of a file in a folder.
    Folder(FolderFill),
}

impl Fill {
    /// Copies `content`, and answers with the disk when all of it is durable. What is broken off is
    /// done again by the next start.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn run(
        self,
        content: &mut dyn Content,
        progress: Progress<'_>,
    ) -> Result<StoredDisk, StoreError> {
        match self {
            Self::Block(fill) => fill.run(content, progress),
            Self::Folder(fill) => fill.run(content, progress),
        }
    }
}

/// Copies `content` from `start` on, piece by piece, to where `write` puts it; pieces of zeros are left
/// out unless `write_zeros`.
pub(super) fn copy(
    content: &mut dyn Content,
    start: u64,
    write_zeros: bool,
    progress: Progress<'_>,
    write: &mut dyn FnMut(&[u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    let len = content.disk_len();
    let mut piece = vec![0; usize::try_from(PIECE_LEN).map_err(io::Error::other)?];
    let mut offset = start;
    while offset < len {
        let now = PIECE_LEN.min(len - offset);
        let now_len = usize::try_from(now).map_err(io::Error::other)?;
        let data = piece.get_mut(..now_len).unwrap_or_default();
        content.read_at(data, offset)?;
        if write_zeros || data.iter().any(|byte| *byte != 0) {
            write(data, offset)?;
        }
        offset += now;
        progress(offset, len);
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Some content, which breaks off at `broken_at`.
    pub struct Bytes {
        pub data: Vec<u8>,
        pub broken_at: u64,
    }

    impl Bytes {
        pub fn new(len: usize) -> Self {
            // Periods that are no power of two show shifted pieces; the second MiB is a hole.
            let byte = |at: usize| match at >> 20 {
                1 => 0,
                _ => u8::try_from(at % 251 + 1).unwrap_or(1),
            };
            Self {
                data: (0..len).map(byte).collect(),
                broken_at: u64::MAX,
            }
        }
    }

    impl Content for Bytes {
        fn disk_len(&self) -> u64 {
            self.data.len() as u64
        }

        fn read_at(&mut self, data: &mut [u8], offset: u64) -> io::Result<()> {
            if offset + data.len() as u64 > self.broken_at {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let start = usize::try_from(offset).unwrap();
            data.copy_from_slice(&self.data[start..start + data.len()]);
            Ok(())
        }
    }
}
