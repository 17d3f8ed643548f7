//! L2 tables, in slices: what of them was used lately is in memory.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::entry::COPIED;
use super::header::Header;

/// The longest slice.
const MAX_SLICE_LEN: u64 = 4096;
/// Slices in memory: 16 MiB, for 128 GiB of clusters of 64 KiB.
const MAX_SLICES: usize = 4096;
/// Changed slices in memory. A flush holds as many again.
const MAX_CHANGED: usize = 1024;
/// Changed entries of the L1 table are written in parts of this many.
const L1_PART: usize = 64;

/// Some bytes for a place in the file.
pub type Write = (u64, Vec<u8>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// As in the file.
    Clean,
    /// Not yet in the file.
    Changed,
    /// On its way to the file.
    Flushing,
}

struct Slice {
    entries: Vec<u64>,
    state: State,
    /// Whether it was used since the clock's hand passed.
    used: bool,
}

/// Where a cluster's entry is.
#[derive(Clone, Copy, Debug)]
struct Position {
    l1_index: usize,
    /// Of the slice in its table.
    slice_offset: u64,
    /// Of the entry in its slice.
    index: usize,
}

/// The table of tables, and slices of the tables.
pub struct Tables {
    l1_offset: u64,
    l1: Vec<u64>,
    changed_l1: BTreeSet<usize>,
    slices: HashMap<u64, Slice>,
    clock: VecDeque<u64>,
    changed: usize,
    cluster_bits: u32,
}

impl Tables {
    /// The tables that `l1` leads to.
    pub fn new(header: &Header, l1: Vec<u64>) -> Self {
        Self {
            l1_offset: header.l1_offset,
            l1,
            changed_l1: BTreeSet::new(),
            slices: HashMap::new(),
            clock: VecDeque::new(),
            changed: 0,
            cluster_bits: header.cluster_bits,
        }
    }

    fn slice_len(&self) -> u64 {
        MAX_SLICE_LEN.min(1 << self.cluster_bits)
    }

    fn position(&self, offset: u64) -> Position {
        let cluster = offset >> self.cluster_bits;
        let table_bits = self.cluster_bits - 3;
        let in_table = (cluster & ((1 << table_bits) - 1)) * 8;
        let in_slice = in_table % self.slice_len();
        Position {
            l1_index: usize::try_from(cluster >> table_bits).unwrap_or(usize::MAX),
            slice_offset: in_table - in_slice,
            index: usize::try_from(in_slice / 8).unwrap_or(usize::MAX),
        }
    }

    /// Where the disk ends that one table is for, from `offset` on.
    pub fn table_end(&self, offset: u64) -> u64 {
        let table_bits = 2 * self.cluster_bits - 3;
        (offset >> table_bits)
            .saturating_add(1)
            .saturating_mul(1 << table_bits)
    }

    /// Whether there is a table for `offset`.
    pub fn has_table(&self, offset: u64) -> bool {
        let table = self.l1.get(self.position(offset).l1_index);
        table.is_some_and(|&table| table != 0)
    }

    /// The entries of the cluster at `offset` and of those that follow, as far as they are in
    /// one slice; none where there is no table.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn entries(&mut self, file: &File, offset: u64) -> io::Result<&[u64]> {
        let index = self.position(offset).index;
        Ok(match self.slice(file, offset)? {
            Some(slice) => slice.entries.get(index..).unwrap_or_default(),
            None => &[],
        })
    }

    /// Sets the entry of the cluster at `offset`, for which there is a table.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn set(&mut self, file: &File, offset: u64, entry: u64) -> io::Result<()> {
        let index = self.position(offset).index;
        let slice = self.slice(file, offset)?.ok_or(io::ErrorKind::NotFound)?;
        if let Some(place) = slice.entries.get_mut(index) {
            *place = entry;
        }
        let is_first = slice.state != State::Changed;
        slice.state = State::Changed;
        self.changed += usize::from(is_first);
        Ok(())
    }

    /// Makes `table`, a cluster that is zero in the file, the one for `offset`.
    pub fn add_table(&mut self, offset: u64, table: u64) {
        let index = self.position(offset).l1_index;
        if let Some(entry) = self.l1.get_mut(index) {
            *entry = table;
            self.changed_l1.insert(index / L1_PART);
        }
    }

    /// Whether a flush is due before anything else is changed.
    pub fn is_full(&self) -> bool {
        self.changed >= MAX_CHANGED
    }

    fn slice(&mut self, file: &File, offset: u64) -> io::Result<Option<&mut Slice>> {
        let Position {
            l1_index,
            slice_offset,
            ..
        } = self.position(offset);
        let table = self.l1.get(l1_index).copied().unwrap_or(0);
        if table == 0 {
            return Ok(None);
        }
        let key = table + slice_offset;
        if !self.slices.contains_key(&key) {
            let mut bytes = vec![0; usize::try_from(self.slice_len()).unwrap_or(0)];
            file.read_exact_at(&mut bytes, key)?;
            let entries = bytes.as_chunks().0.iter();
            let entries = entries.map(|entry| u64::from_be_bytes(*entry)).collect();
            self.make_room();
            let state = State::Clean;
            self.slices.insert(
                key,
                Slice {
                    entries,
                    state,
                    used: true,
                },
            );
            self.clock.push_back(key);
        }
        let mut slice = self.slices.get_mut(&key);
        if let Some(slice) = &mut slice {
            slice.used = true;
        }
        Ok(slice)
    }

    /// Forgets a slice that was not used lately, if there are too many.
    fn make_room(&mut self) {
        // Two rounds: the first one may find that all were used.
        for _ in 0..self.clock.len() * 2 {
            if self.slices.len() < MAX_SLICES {
                return;
            }
            let Some(key) = self.clock.pop_front() else {
                return;
            };
            match self.slices.get_mut(&key) {
                Some(slice) if slice.used || slice.state != State::Clean => {
                    slice.used = false;
                    self.clock.push_back(key);
                }
                _ => drop(self.slices.remove(&key)),
            }
        }
    }

    /// What is to be written; from now on it is on its way.
    pub fn begin_flush(&mut self) -> Vec<Write> {
        let changed = self.slices.iter_mut();
        let changed = changed.filter(|(_, slice)| slice.state == State::Changed);
        let mut writes: Vec<Write> = changed
            .map(|(&offset, slice)| {
                slice.state = State::Flushing;
                let entries = slice.entries.iter();
                (
                    offset,
                    entries.flat_map(|entry| entry.to_be_bytes()).collect(),
                )
            })
            .collect();
        self.changed = 0;
        writes.sort_unstable_by_key(|(offset, _)| *offset);
        for part in std::mem::take(&mut self.changed_l1) {
            let entries = self.l1.iter().skip(part * L1_PART).take(L1_PART);
            let entries = entries.map(|&table| if table == 0 { 0 } else { table | COPIED });
            let bytes = entries.flat_map(u64::to_be_bytes).collect();
            writes.push((self.l1_offset + (part * L1_PART * 8) as u64, bytes));
        }
        writes
    }

    /// What was on its way has arrived.
    pub fn end_flush(&mut self) {
        for slice in self.slices.values_mut() {
            if slice.state == State::Flushing {
                slice.state = State::Clean;
            }
        }
    }
}
