//! A layer that takes the writes to a disk that must not change: a sparse file, and in memory
//! which clusters it has. It ends with the pod, so nothing of it is ever made durable.

use std::io;

use thiserror::Error;

use super::{Extent, FlushStep, Layer, Place, Reservation, Target, TopLayer, Zeroing};
use crate::virtio::block::transfer::FileId;

/// Most clusters: with a bit each, 2 MiB of memory.
const MAX_CLUSTERS: u64 = 1 << 24;
/// The smallest clusters are the blocks of usual file systems: most writes then replace whole
/// clusters, and nothing has to be read for them.
const MIN_CLUSTER_BITS: u32 = 12;
/// The largest clusters; longer disks would need more than [`MAX_CLUSTERS`] of them.
const MAX_CLUSTER_BITS: u32 = 21;
/// Clusters looked at for one answer.
const MAX_RUN: u64 = 1 << 12;

/// A disk is too long for a layer on it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a disk of {0} bytes is too long to be written to by copy-on-write")]
pub struct TooLong(pub u64);

/// The layer. Clusters lie in the file where they lie on the disk.
pub struct CowLayer {
    file: FileId,
    len: u64,
    cluster_bits: u32,
    /// A bit for each cluster that the layer has.
    present: Vec<u64>,
}

impl CowLayer {
    /// An empty layer over a disk of `len` bytes.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn new(file: FileId, len: u64) -> Result<Self, TooLong> {
        let clusters = |bits: &u32| len.div_ceil(1 << bits);
        let mut sizes = MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS;
        let cluster_bits = sizes.find(|bits| clusters(bits) <= MAX_CLUSTERS);
        let cluster_bits = cluster_bits.ok_or(TooLong(len))?;
        let words = usize::try_from(clusters(&cluster_bits).div_ceil(64));
        Ok(Self {
            file,
            len,
            cluster_bits,
            present: vec![0; words.map_err(|_| TooLong(len))?],
        })
    }

    fn has(&self, cluster: u64) -> bool {
        let word = usize::try_from(cluster / 64).ok();
        let word = word.and_then(|word| self.present.get(word));
        word.is_some_and(|word| word >> (cluster % 64) & 1 == 1)
    }

    /// Whether the layer has the cluster at `offset`, and for how many bytes from there that
    /// does not change.
    fn run(&self, offset: u64, len: u64) -> (bool, u64) {
        let end = offset.saturating_add(len);
        let first = offset >> self.cluster_bits;
        let has = self.has(first);
        let last = end.saturating_sub(1) >> self.cluster_bits;
        let next = (first + 1..=last.min(first + MAX_RUN)).find(|&next| self.has(next) != has);
        let next = next.unwrap_or_else(|| (first + MAX_RUN).min(last) + 1);
        (has, (next << self.cluster_bits).min(end) - offset)
    }
}

impl Layer for CowLayer {
    fn len(&self) -> u64 {
        self.len
    }

    fn locate(&mut self, offset: u64, len: u64) -> io::Result<Extent> {
        let (has, len) = self.run(offset, len);
        let file = self.file;
        let place = match has {
            true => Place::File { file, offset },
            false => Place::Below,
        };
        Ok(Extent { place, len })
    }
}

impl TopLayer for CowLayer {
    fn cluster_len(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn target(&mut self, offset: u64, len: u64) -> io::Result<Target> {
        let (has, len) = self.run(offset, len);
        let place = has.then_some((self.file, offset));
        Ok(Target { place, len })
    }

    fn reserve(&mut self, offset: u64, len: u64) -> io::Result<Reservation> {
        Ok(Reservation {
            offset,
            len,
            file: self.file,
            at: offset,
            // A write that failed half-way may have left something.
            is_zero: false,
        })
    }

    fn commit(&mut self, reservation: &Reservation) -> io::Result<()> {
        let first = reservation.offset >> self.cluster_bits;
        let end = reservation.offset.saturating_add(reservation.len);
        for cluster in first..end.div_ceil(self.cluster_len()) {
            let word = usize::try_from(cluster / 64).unwrap_or(usize::MAX);
            if let Some(word) = self.present.get_mut(word) {
                *word |= 1 << (cluster % 64);
            }
        }
        Ok(())
    }

    fn cancel(&mut self, _: Reservation) {}

    fn zero(&mut self, _: u64, len: u64, _: bool) -> io::Result<(Zeroing, u64)> {
        Ok((Zeroing::Reserve, len))
    }

    fn begin_flush(&mut self) -> io::Result<FlushStep> {
        Ok(FlushStep::Done)
    }

    fn continue_flush(&mut self) -> io::Result<FlushStep> {
        Ok(FlushStep::Done)
    }

    fn close(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileId = FileId(0);

    fn committed(layer: &mut CowLayer, offset: u64, len: u64) {
        let reservation = layer.reserve(offset, len).unwrap();
        layer.commit(&reservation).unwrap();
    }

    #[test]
    fn runs_end_where_the_layer_begins_or_ends_to_have_clusters() {
        let mut layer = CowLayer::new(FILE, 1 << 20).unwrap();
        committed(&mut layer, 8192, 8192);
        let mut run = |offset, len| {
            let target = layer.target(offset, len).unwrap();
            (target.place.is_some(), target.len)
        };
        assert_eq!(run(0, 100), (false, 100));
        assert_eq!(run(4000, 1 << 16), (false, 4192));
        assert_eq!(run(8192, 1 << 16), (true, 8192));
        assert_eq!(run(12000, 500), (true, 500));
        assert_eq!(run(16384, 5000), (false, 5000));
    }

    #[test]
    fn long_runs_come_in_several_answers() {
        let mut layer = CowLayer::new(FILE, 1 << 30).unwrap();
        let first = layer.locate(100, (1 << 30) - 100).unwrap();
        assert!(first.len >= MAX_RUN << MIN_CLUSTER_BITS, "{first:?}");
        assert_eq!((first.len + 100) % 4096, 0);
    }

    #[test]
    fn the_memory_of_long_disks_is_bounded() {
        for (len, cluster_len) in [
            (0, 4096),
            (1, 4096),
            (64 << 30, 4096),
            ((64 << 30) + 1, 8192),
            (32 << 40, 2 << 20),
        ] {
            let layer = CowLayer::new(FILE, len).unwrap();
            assert_eq!(layer.cluster_len(), cluster_len, "{len}");
            assert!(layer.present.len() * 64 <= 1 << 24);
        }
        assert!(CowLayer::new(FILE, (32 << 40) + 1).is_err());
    }

    #[test]
    fn the_last_cluster_may_be_cut() {
        let mut layer = CowLayer::new(FILE, 5000).unwrap();
        committed(&mut layer, 4096, 904);
        assert_eq!(layer.target(4500, 500).unwrap().place, Some((FILE, 4500)));
        assert_eq!(layer.target(0, 5000).unwrap().len, 4096);
    }
}
