//! An image as a layer of a disk that is only read.

use std::fs::File;
use std::io;

use super::Qcow2Error;
use super::compressed::Expanded;
use super::entry::Cluster;
use super::header::{Header, read_up_to};
use super::metadata::Metadata;
use super::tables::Tables;
use crate::virtio::block::layers::{Extent, Layer, Place};
use crate::virtio::block::transfer::FileId;

/// An image that is only read.
pub struct Qcow2ReadOnly {
    pub(super) file: File,
    pub(super) id: FileId,
    pub(super) file_len: u64,
    pub(super) header: Header,
    pub(super) metadata: Metadata,
    pub(super) tables: Tables,
    expanded: Expanded,
}

/// What is wrong with an image that was good enough to be opened.
fn damaged(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

pub(super) fn wrong_entry(offset: u64) -> io::Error {
    damaged(format!(
        "the image's entry for the cluster at {offset:#x} is wrong"
    ))
}

fn outside(offset: u64) -> io::Error {
    damaged(format!(
        "the image's data at {offset:#x} lie outside of its file"
    ))
}

impl Qcow2ReadOnly {
    /// The image in `file`, of `file_len` bytes, which is called `id` where it is transferred.
    ///
    /// # Errors
    /// What is wrong with its metadata.
    pub fn new(file: File, file_len: u64, id: FileId, header: Header) -> Result<Self, Qcow2Error> {
        let mut metadata = Metadata::read(&file, &header, file_len)?;
        let l1 = std::mem::take(&mut metadata.l1);
        Ok(Self {
            tables: Tables::new(&header, l1),
            file,
            id,
            file_len,
            header,
            metadata,
            expanded: Expanded::default(),
        })
    }

    /// Whether the file has all that its reference counts speak of.
    ///
    /// # Errors
    /// [`Qcow2Error::Truncated`].
    pub fn check_whole(&self) -> Result<(), Qcow2Error> {
        if self.header.is_dirty {
            return Ok(());
        }
        let table = &self.metadata.refcount_table;
        let Some(index) = table.iter().rposition(|&offset| offset != 0) else {
            return Ok(());
        };
        let offset = table.get(index).copied().unwrap_or(0);
        let mut counts = vec![0; 1 << self.header.cluster_bits];
        read_up_to(&self.file, &mut counts, offset, "refcount block")?;
        let Some(last) = counts.iter().rposition(|&byte| byte != 0) else {
            return Ok(());
        };
        let bits = (last as u64) << 3 >> self.header.refcount_order;
        let first = index as u64 * self.header.refcounts_per_block();
        // With counts of less than a byte this is the first of several clusters.
        let cluster = first.saturating_add(bits);
        match cluster.saturating_mul(self.header.cluster_len()) >= self.file_len {
            true => Err(Qcow2Error::Truncated("data")),
            false => Ok(()),
        }
    }

    /// Whole clusters in the file, and nothing in the header that writing makes untrue.
    pub(super) fn prepare_writing(&mut self) -> io::Result<()> {
        let whole = self.file_len.next_multiple_of(self.header.cluster_len());
        if whole > self.file_len {
            self.file.set_len(whole)?;
            self.file_len = whole;
        }
        self.header.clear_autoclear(&self.file)
    }

    /// Whether data may lie in the cluster at `offset`.
    pub(super) fn check(&self, offset: u64) -> io::Result<()> {
        if offset >= self.file_len {
            return Err(outside(offset));
        }
        match self.metadata.at(offset >> self.header.cluster_bits) {
            None => Ok(()),
            Some(what) => {
                let text = format!("the image has data at {offset:#x}, where its {what} is");
                Err(damaged(text))
            }
        }
    }

    /// What the first of the clusters from `offset` on is, and how many bytes of the range go on
    /// in the same way (`same` tells it from the cluster, the one before and the first).
    pub(super) fn run(
        &mut self,
        offset: u64,
        len: u64,
        same: impl Fn(Cluster, Cluster, u64) -> bool,
    ) -> io::Result<(Cluster, u64)> {
        let cluster_len = self.header.cluster_len();
        let in_cluster = offset % cluster_len;
        let entries = self.tables.entries(&self.file, offset)?;
        let Some((&first, others)) = entries.split_first() else {
            let end = self.tables.table_end(offset);
            return Ok((Cluster::Unallocated, len.min(end - offset)));
        };
        let first = Cluster::of(first, &self.header);
        let most = (in_cluster + len).div_ceil(cluster_len);
        let mut clusters = 1;
        for &entry in others {
            let next = Cluster::of(entry, &self.header);
            if clusters >= most || !same(first, next, clusters * cluster_len) {
                break;
            }
            clusters += 1;
        }
        Ok((first, len.min(clusters * cluster_len - in_cluster)))
    }

    /// Checks every cluster of a run of data that begins with the cluster at `offset`.
    pub(super) fn check_run(&self, offset: u64, len: u64) -> io::Result<()> {
        let cluster_len = self.header.cluster_len();
        let end = offset.saturating_add(len);
        let mut cluster = offset - offset % cluster_len;
        while cluster < end {
            self.check(cluster)?;
            cluster += cluster_len;
        }
        Ok(())
    }
}

/// Whether `next`, `distance` bytes behind `first`, is read in the same way.
fn reads_alike(first: Cluster, next: Cluster, distance: u64) -> bool {
    match (first, next) {
        (Cluster::Unallocated, Cluster::Unallocated)
        | (Cluster::Zero { .. }, Cluster::Zero { .. }) => true,
        (Cluster::Data { offset: a, .. }, Cluster::Data { offset: b, .. }) => a + distance == b,
        _ => false,
    }
}

/// Whether `next`, `distance` bytes behind `first`, is written in the same way.
pub(super) fn writes_alike(first: Cluster, next: Cluster, distance: u64) -> bool {
    match (own_data(first), own_data(next)) {
        (Some(a), Some(b)) => a + distance == b,
        (None, None) => next != Cluster::Wrong,
        _ => false,
    }
}

pub(super) fn own_data(cluster: Cluster) -> Option<u64> {
    match cluster {
        Cluster::Data {
            offset,
            is_own: true,
        } => Some(offset),
        _ => None,
    }
}

impl Layer for Qcow2ReadOnly {
    fn len(&self) -> u64 {
        self.header.disk_len
    }

    fn locate(&mut self, offset: u64, len: u64) -> io::Result<Extent> {
        let (cluster, mut len) = self.run(offset, len, reads_alike)?;
        let in_cluster = offset % self.header.cluster_len();
        let place = match cluster {
            Cluster::Unallocated => Place::Below,
            Cluster::Zero { .. } => Place::Zeros,
            Cluster::Data { offset: start, .. } => {
                let start = start + in_cluster;
                self.check_run(start, len)?;
                // The last cluster may be cut where its data ended.
                match self.file_len.checked_sub(start) {
                    Some(rest @ 1..) => {
                        len = len.min(rest);
                        Place::File {
                            file: self.id,
                            offset: start,
                        }
                    }
                    _ => Place::Zeros,
                }
            }
            Cluster::Compressed {
                offset: start,
                len: compressed_len,
            } => {
                if start >= self.file_len {
                    return Err(outside(start));
                }
                let compressed_len = compressed_len.min(self.file_len - start);
                let cluster_len = self.header.cluster_len();
                let bytes = self
                    .expanded
                    .get(&self.file, start, compressed_len, cluster_len)?;
                let skip = usize::try_from(in_cluster).map_err(io::Error::other)?;
                Place::Bytes { bytes, skip }
            }
            Cluster::Wrong => return Err(wrong_entry(offset)),
        };
        Ok(Extent { place, len })
    }
}
