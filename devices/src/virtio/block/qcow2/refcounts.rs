//! Room at an image's end, and the counts of references to its clusters.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use super::header::{Header, MAX_REFCOUNT_TABLE_LEN, REFCOUNT_TABLE_FIELD};
use super::metadata::Metadata;
use super::tables::Write;

/// Blocks of counts in memory before a flush is due, in bytes.
const MAX_BLOCKS_LEN: u64 = 8 << 20;
/// The longest image: offsets in entries have 56 bits.
const MAX_FILE_LEN: u64 = 1 << 55;
/// The table is written in parts of this many entries.
const TABLE_PART: usize = 64;

struct Block {
    counts: Vec<u8>,
    is_changed: bool,
}

/// The counts, as far as they were needed.
pub struct Refcounts {
    cluster_bits: u32,
    order: u32,
    per_block: u64,
    table: Vec<u64>,
    table_offset: u64,
    table_clusters: u64,
    changed_table: BTreeSet<usize>,
    has_moved: bool,
    blocks: BTreeMap<usize, Block>,
    /// The first cluster that was never used.
    next: u64,
    /// Clusters of tables that have been replaced.
    freed: Vec<u64>,
}

/// What has to be written, in this order.
pub struct RefcountWrites {
    /// Blocks of counts.
    pub blocks: Vec<Write>,
    /// The table that leads to them.
    pub table: Vec<Write>,
    /// The header's fields that lead to that.
    pub header: Option<Write>,
    /// Clusters that are free when all of it is done.
    pub freed: Vec<u64>,
}

impl Refcounts {
    /// The counts of the image with this header and refcount table, in a file of `file_len`
    /// bytes.
    pub fn new(header: &Header, table: Vec<u64>, file_len: u64) -> Self {
        Self {
            cluster_bits: header.cluster_bits,
            order: header.refcount_order,
            per_block: header.refcounts_per_block(),
            table,
            table_offset: header.refcount_table_offset,
            table_clusters: header.refcount_table_clusters.into(),
            changed_table: BTreeSet::new(),
            has_moved: false,
            blocks: BTreeMap::new(),
            next: file_len.div_ceil(header.cluster_len()),
            freed: Vec::new(),
        }
    }

    /// Where the room that was given away ends in the file.
    pub fn end(&self) -> u64 {
        self.next << self.cluster_bits
    }

    /// Takes `clusters` at the image's end and counts a reference to each. Returns the position
    /// of the first.
    ///
    /// # Errors
    /// The image would be too long, or its counts cannot be read.
    pub fn allocate(
        &mut self,
        file: &File,
        metadata: &mut Metadata,
        clusters: u64,
    ) -> io::Result<u64> {
        let first = self.next;
        let end = first.saturating_add(clusters);
        if end > MAX_FILE_LEN >> self.cluster_bits {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.next = end;
        let mut cluster = first;
        // Blocks for the counts come behind them and are counted as well.
        while cluster < self.next {
            self.set(file, metadata, cluster, true)?;
            cluster += 1;
        }
        Ok(first)
    }

    /// Sets the count of references to a cluster, to one or to none.
    pub fn set(
        &mut self,
        file: &File,
        metadata: &mut Metadata,
        cluster: u64,
        is_used: bool,
    ) -> io::Result<()> {
        let index = usize::try_from(cluster / self.per_block).map_err(io::Error::other)?;
        if index >= self.table.len() {
            self.move_table(metadata, index)?;
        }
        let order = self.order;
        let position = usize::try_from(cluster % self.per_block).map_err(io::Error::other)?;
        let block = self.block(file, metadata, index)?;
        block.is_changed = true;
        put(&mut block.counts, order, position, is_used);
        Ok(())
    }

    fn block(
        &mut self,
        file: &File,
        metadata: &mut Metadata,
        index: usize,
    ) -> io::Result<&mut Block> {
        let offset = self.table.get(index).copied().unwrap_or(0);
        if !self.blocks.contains_key(&index) {
            let mut counts = vec![0; 1 << self.cluster_bits];
            if offset == 0 {
                let cluster = self.next;
                self.next += 1;
                if let Some(entry) = self.table.get_mut(index) {
                    *entry = cluster << self.cluster_bits;
                }
                self.changed_table.insert(index / TABLE_PART);
                metadata.add_refcounts(cluster);
            } else {
                file.read_exact_at(&mut counts, offset)?;
            }
            let is_changed = false;
            let block = Block { counts, is_changed };
            self.blocks.insert(index, block);
        }
        let block = self.blocks.get_mut(&index);
        block.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Gives the table, at another place, room for an entry `index`.
    fn move_table(&mut self, metadata: &mut Metadata, index: usize) -> io::Result<()> {
        let entries = 1_u64 << (self.cluster_bits - 3);
        let needed = (index as u64 + 1).div_ceil(entries);
        let clusters = needed.max(self.table_clusters * 2);
        if clusters << self.cluster_bits > MAX_REFCOUNT_TABLE_LEN {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let old = self.table_offset >> self.cluster_bits;
        self.freed.extend(old..old + self.table_clusters);
        let new: Range<u64> = self.next..self.next + clusters;
        new.clone()
            .for_each(|cluster| metadata.add_refcounts(cluster));
        self.next = new.end;
        self.table_offset = new.start << self.cluster_bits;
        self.table_clusters = clusters;
        self.has_moved = true;
        let len = usize::try_from(clusters * entries).map_err(io::Error::other)?;
        self.table.resize(len, 0);
        Ok(())
    }

    /// Whether a flush is due before more is allocated.
    pub fn is_full(&self) -> bool {
        let most = usize::try_from(MAX_BLOCKS_LEN >> self.cluster_bits).unwrap_or(0);
        self.blocks.len() > most.max(4)
    }

    /// What is to be written.
    pub fn begin_flush(&mut self) -> RefcountWrites {
        let mut blocks = Vec::new();
        for (&index, block) in &mut self.blocks {
            if std::mem::take(&mut block.is_changed)
                && let Some(&offset) = self.table.get(index)
            {
                blocks.push((offset, block.counts.clone()));
            }
        }
        let parts = self.table.len().div_ceil(TABLE_PART);
        let changed = std::mem::take(&mut self.changed_table);
        let changed: Vec<usize> = match self.has_moved {
            true => (0..parts).collect(),
            false => changed.into_iter().collect(),
        };
        let table = changed.into_iter().map(|part| self.table_part(part));
        let table = table.collect();
        let header = std::mem::take(&mut self.has_moved).then(|| {
            let clusters = u32::try_from(self.table_clusters).unwrap_or(u32::MAX);
            let offset = self.table_offset.to_be_bytes();
            let bytes = offset.into_iter().chain(clusters.to_be_bytes()).collect();
            (REFCOUNT_TABLE_FIELD, bytes)
        });
        let freed = std::mem::take(&mut self.freed);
        RefcountWrites {
            blocks,
            table,
            header,
            freed,
        }
    }

    fn table_part(&self, part: usize) -> Write {
        let entries = self.table.iter().skip(part * TABLE_PART).take(TABLE_PART);
        let bytes = entries.flat_map(|entry| entry.to_be_bytes()).collect();
        (self.table_offset + (part * TABLE_PART * 8) as u64, bytes)
    }

    /// What was to be written is in the file: nothing but the last block is needed soon.
    pub fn end_flush(&mut self) {
        let last = usize::try_from(self.next / self.per_block).unwrap_or(usize::MAX);
        self.blocks
            .retain(|&index, block| block.is_changed || index == last);
    }
}

/// Sets a count in a block of counts of two to the power of `order` bits.
fn put(counts: &mut [u8], order: u32, position: usize, is_used: bool) {
    let bits = 1_usize << order;
    if let Some(bytes) = (bits / 8).checked_sub(1) {
        let start = position * (bytes + 1);
        let count = counts.iter_mut().skip(start).take(bytes + 1);
        for (index, byte) in count.enumerate() {
            *byte = u8::from(is_used && index == bytes);
        }
    } else if let Some(byte) = counts.get_mut(position * bits / 8) {
        let shift = position * bits % 8;
        let mask = ((1_u16 << bits) - 1) << shift;
        let [mask, _] = mask.to_le_bytes();
        *byte = *byte & !mask | u8::from(is_used) << shift;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_every_width_are_where_the_format_has_them() {
        let expected: [(u32, &[u8]); 7] = [
            (0, &[0b1000]),
            (1, &[0b0100_0000]),
            (2, &[0, 0b1_0000]),
            (3, &[0, 0, 0, 1]),
            (4, &[0, 0, 0, 0, 0, 0, 0, 1]),
            (5, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
            (6, &[0; 31]),
        ];
        for (order, bytes) in expected {
            let mut counts = vec![0; 64];
            put(&mut counts, order, 3, true);
            assert_eq!(&counts[..bytes.len()], bytes, "order {order}");
            put(&mut counts, order, 3, false);
            assert_eq!(counts, [0; 64]);
        }
    }
}
