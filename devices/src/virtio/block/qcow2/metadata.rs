//! Where an image's metadata lie, so that no two of them and no data lie there, too.

use std::fs::File;

use super::Qcow2Error;
use super::entry::{COPIED, OFFSET};
use super::header::{Header, read_up_to};

/// What lies in a cluster of metadata.
const NAMES: [&str; 5] = [
    "header",
    "L1 table",
    "refcount table",
    "L2 table",
    "refcount block",
];
const HEADER: u64 = 0;
const L1_TABLE: u64 = 1;
const REFCOUNT_TABLE: u64 = 2;
const L2_TABLE: u64 = 3;
const REFCOUNT_BLOCK: u64 = 4;
/// Bits of a kind.
const KIND_BITS: u32 = 3;

/// The tables that lead to all others, and the clusters of all of them.
pub struct Metadata {
    /// Offsets of L2 tables; 0 for those that there are not.
    pub l1: Vec<u64>,
    /// Offsets of refcount blocks; 0 for those that there are not.
    pub refcount_table: Vec<u64>,
    /// Positions in the file, in clusters, and what is there; in order.
    clusters: Vec<u64>,
}

impl Metadata {
    /// Reads the tables of the image in `file` of `file_len` bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn read(file: &File, header: &Header, file_len: u64) -> Result<Self, Qcow2Error> {
        let tables = Tables {
            file,
            header,
            file_len,
        };
        let l1 = tables.read(header.l1_offset, header.l1_entries, L1_TABLE, L2_TABLE)?;
        let entries = u64::from(header.refcount_table_clusters) * header.entries_per_table();
        let entries = usize::try_from(entries).unwrap_or(usize::MAX);
        let refcount_table = tables.read(
            header.refcount_table_offset,
            entries,
            REFCOUNT_TABLE,
            REFCOUNT_BLOCK,
        )?;
        let mut metadata = Self {
            l1,
            refcount_table,
            clusters: vec![HEADER],
        };
        metadata.collect(header)?;
        Ok(metadata)
    }

    fn collect(&mut self, header: &Header) -> Result<(), Qcow2Error> {
        let bits = header.cluster_bits;
        let table = |offset: u64, entries: usize, kind| {
            let clusters = (entries as u64 * 8).div_ceil(header.cluster_len());
            (offset >> bits..(offset >> bits) + clusters).map(move |cluster| mark(cluster, kind))
        };
        self.clusters
            .extend(table(header.l1_offset, self.l1.len(), L1_TABLE));
        let (offset, len) = (header.refcount_table_offset, self.refcount_table.len());
        self.clusters.extend(table(offset, len, REFCOUNT_TABLE));
        for (offsets, kind) in [(&self.l1, L2_TABLE), (&self.refcount_table, REFCOUNT_BLOCK)] {
            let offsets = offsets.iter().filter(|&&offset| offset != 0);
            let marks = offsets.map(|offset| mark(offset >> bits, kind));
            self.clusters.extend(marks);
        }
        self.clusters.sort_unstable();
        let mut pairs = self.clusters.iter().zip(self.clusters.iter().skip(1));
        match pairs.find(|(a, b)| cluster_of(**a) == cluster_of(**b)) {
            None => Ok(()),
            Some((&first, &second)) => Err(Qcow2Error::Overlap {
                first: name(first),
                second: name(second),
                offset: cluster_of(first) << bits,
            }),
        }
    }

    /// What metadata lie in the cluster at this position.
    pub fn at(&self, cluster: u64) -> Option<&'static str> {
        let found = self
            .clusters
            .binary_search_by_key(&cluster, |&mark| cluster_of(mark));
        let mark = self.clusters.get(found.ok()?)?;
        Some(name(*mark))
    }

    /// Notes a new L2 table, in a cluster behind all others.
    pub fn add_l2_table(&mut self, cluster: u64) {
        self.add(mark(cluster, L2_TABLE));
    }

    /// Notes a new refcount block, or a part of a new refcount table.
    pub fn add_refcounts(&mut self, cluster: u64) {
        self.add(mark(cluster, REFCOUNT_BLOCK));
    }

    fn add(&mut self, mark: u64) {
        let position = self.clusters.partition_point(|&other| other < mark);
        self.clusters.insert(position, mark);
    }
}

fn mark(cluster: u64, kind: u64) -> u64 {
    cluster << KIND_BITS | kind
}

fn cluster_of(mark: u64) -> u64 {
    mark >> KIND_BITS
}

fn name(mark: u64) -> &'static str {
    let kind = usize::try_from(mark & ((1 << KIND_BITS) - 1)).ok();
    kind.and_then(|kind| NAMES.get(kind)).copied().unwrap_or("")
}

/// The tables of an image that is being opened.
struct Tables<'a> {
    file: &'a File,
    header: &'a Header,
    file_len: u64,
}

impl Tables<'_> {
    /// Reads a table of `entries`, which are offsets of clusters. The header bounds them.
    fn read(
        &self,
        offset: u64,
        entries: usize,
        kind: u64,
        of: u64,
    ) -> Result<Vec<u64>, Qcow2Error> {
        let what = name(kind);
        if entries == 0 {
            return Ok(Vec::new());
        }
        let len = entries as u64 * 8;
        if !offset.is_multiple_of(self.header.cluster_len()) {
            let entry = offset;
            return Err(Qcow2Error::Entry { what, entry });
        }
        if offset >= self.file_len {
            return Err(Qcow2Error::Outside { what, offset });
        }
        if self.file_len - offset < len {
            return Err(Qcow2Error::Truncated(what));
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        if read_up_to(self.file, &mut bytes, offset, what)? < bytes.len() {
            return Err(Qcow2Error::Truncated(what));
        }
        let (entries, _) = bytes.as_chunks();
        let entries = entries.iter().map(|entry| u64::from_be_bytes(*entry));
        entries.map(|entry| self.check(entry, kind, of)).collect()
    }

    /// The offset that an entry of a table says.
    fn check(&self, entry: u64, kind: u64, of: u64) -> Result<u64, Qcow2Error> {
        let cluster_len = self.header.cluster_len();
        let flags = if of == L2_TABLE { COPIED } else { 0 };
        let offset = entry & OFFSET;
        if entry & !(OFFSET | flags) != 0 || !offset.is_multiple_of(cluster_len) {
            let what = name(kind);
            return Err(Qcow2Error::Entry { what, entry });
        }
        if offset != 0 && self.file_len.saturating_sub(cluster_len) < offset {
            let what = name(of);
            return Err(Qcow2Error::Outside { what, offset });
        }
        Ok(offset)
    }
}
