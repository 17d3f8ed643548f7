//! An image as a layer of a disk.

use std::fs::File;
use std::io;

use super::Qcow2Error;
use super::compressed::Expanded;
use super::entry::{COPIED, Cluster, ZERO};
use super::flush::Flush;
use super::header::{Header, read_up_to};
use super::metadata::Metadata;
use super::refcounts::Refcounts;
use super::tables::Tables;
use crate::virtio::block::layers::{
    Extent, FlushStep, Layer, Place, Reservation, Target, TopLayer, Zeroing,
};
use crate::virtio::block::transfer::FileId;

/// The file grows by at least this much: setting its length for each cluster would cost more
/// than the clusters.
const GROWTH: u64 = 16 << 20;

/// An image that is only read.
pub struct Qcow2ReadOnly {
    file: File,
    id: FileId,
    file_len: u64,
    header: Header,
    metadata: Metadata,
    tables: Tables,
    expanded: Expanded,
}

/// What is wrong with an image that was good enough to be opened.
fn damaged(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn wrong_entry(offset: u64) -> io::Error {
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
    fn prepare_writing(&mut self) -> io::Result<()> {
        let whole = self.file_len.next_multiple_of(self.header.cluster_len());
        if whole > self.file_len {
            self.file.set_len(whole)?;
            self.file_len = whole;
        }
        self.header.clear_autoclear(&self.file)
    }

    /// Whether data may lie in the cluster at `offset`.
    fn check(&self, offset: u64) -> io::Result<()> {
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
    fn run(
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
    fn check_run(&self, offset: u64, len: u64) -> io::Result<()> {
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
fn writes_alike(first: Cluster, next: Cluster, distance: u64) -> bool {
    match (own_data(first), own_data(next)) {
        (Some(a), Some(b)) => a + distance == b,
        (None, None) => next != Cluster::Wrong,
        _ => false,
    }
}

fn own_data(cluster: Cluster) -> Option<u64> {
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

/// An image that is written to.
pub struct Qcow2Layer {
    image: Qcow2ReadOnly,
    has_backing: bool,
    refcounts: Refcounts,
    /// Clusters that were taken for nothing. There may be anything in them.
    returned: Vec<u64>,
    flush: Option<Flush>,
    /// Whether that flush began before the last one was asked for, which needs another.
    is_older: bool,
}

impl Qcow2Layer {
    /// `image`, whose file is open for writing.
    ///
    /// # Errors
    /// It cannot be written to.
    pub fn new(mut image: Qcow2ReadOnly) -> Result<Self, Qcow2Error> {
        image.header.check_writable()?;
        let table = std::mem::take(&mut image.metadata.refcount_table);
        let refcounts = Refcounts::new(&image.header, table, image.file_len);
        image.prepare_writing().map_err(Qcow2Error::Write)?;
        Ok(Self {
            has_backing: image.header.backing.is_some(),
            image,
            refcounts,
            returned: Vec::new(),
            flush: None,
            is_older: false,
        })
    }

    fn cluster_at(&mut self, offset: u64) -> io::Result<Cluster> {
        let entries = self.image.tables.entries(&self.image.file, offset)?;
        let first = entries.first().copied().unwrap_or(0);
        Ok(Cluster::of(first, &self.image.header))
    }

    /// Takes clusters at the file's end, which read as zeros.
    fn allocate(&mut self, clusters: u64) -> io::Result<u64> {
        let image = &mut self.image;
        let first = self
            .refcounts
            .allocate(&image.file, &mut image.metadata, clusters)?;
        let end = self.refcounts.end();
        if end > image.file_len {
            let len = end.saturating_add(GROWTH);
            image.file.set_len(len)?;
            image.file_len = len;
        }
        Ok(first)
    }

    /// Makes sure that there is an L2 table for `offset`.
    fn ensure_table(&mut self, offset: u64) -> io::Result<()> {
        if self.image.tables.has_table(offset) {
            return Ok(());
        }
        let cluster = self.allocate(1)?;
        self.image.metadata.add_l2_table(cluster);
        let table = cluster << self.image.header.cluster_bits;
        self.image.tables.add_table(offset, table);
        Ok(())
    }

    fn set(&mut self, offset: u64, entry: u64) -> io::Result<()> {
        self.image.tables.set(&self.image.file, offset, entry)
    }

    /// Writes changed metadata when there is too much of it for more.
    fn make_room(&mut self) -> io::Result<()> {
        if self.image.tables.is_full() || self.refcounts.is_full() {
            self.flush_now()?;
        }
        Ok(())
    }

    /// Flushes on this thread, from wherever a flush has got to.
    fn flush_now(&mut self) -> io::Result<()> {
        let mut step = self.begin_flush()?;
        while let FlushStep::Sync(_) = step {
            if let Err(error) = self.image.file.sync_data() {
                if let Some(flush) = &mut self.flush {
                    flush.fail();
                }
                return Err(error);
            }
            step = self.continue_flush()?;
        }
        Ok(())
    }

    /// How a run of clusters that `cluster` begins, which are not the image's own data, becomes
    /// zeros.
    fn zero_run(&mut self, offset: u64, len: u64, cluster: Cluster) -> io::Result<Zeroing> {
        let entry = match (cluster, self.has_backing, self.image.header.version) {
            (Cluster::Zero { .. }, _, _) | (Cluster::Unallocated, false, _) => {
                return Ok(Zeroing::Done);
            }
            (_, true, 2) => return Ok(Zeroing::Reserve),
            (_, false, 2) => 0,
            _ => ZERO,
        };
        self.make_room()?;
        self.ensure_table(offset)?;
        let cluster_len = self.cluster_len();
        let mut at = offset;
        while at < offset.saturating_add(len) {
            self.set(at, entry)?;
            at += cluster_len;
        }
        Ok(Zeroing::Done)
    }
}

impl Layer for Qcow2Layer {
    fn len(&self) -> u64 {
        self.image.len()
    }

    fn locate(&mut self, offset: u64, len: u64) -> io::Result<Extent> {
        self.image.locate(offset, len)
    }
}

impl TopLayer for Qcow2Layer {
    fn cluster_len(&self) -> u64 {
        self.image.header.cluster_len()
    }

    fn target(&mut self, offset: u64, len: u64) -> io::Result<Target> {
        let (cluster, len) = self.image.run(offset, len, writes_alike)?;
        if cluster == Cluster::Wrong {
            return Err(wrong_entry(offset));
        }
        let place = own_data(cluster);
        let place = place.map(|start| start + offset % self.cluster_len());
        if let Some(start) = place {
            self.image.check_run(start, len)?;
        }
        let id = self.image.id;
        let place = place.map(|start| (id, start));
        Ok(Target { place, len })
    }

    fn reserve(&mut self, offset: u64, len: u64) -> io::Result<Reservation> {
        self.make_room()?;
        self.ensure_table(offset)?;
        let (cluster_len, file) = (self.cluster_len(), self.image.id);
        let one = cluster_len.min(len);
        let again = match self.cluster_at(offset)? {
            Cluster::Zero { room: Some(room) } => {
                self.image.check(room)?;
                Some(room)
            }
            _ => self
                .returned
                .pop()
                .map(|cluster| cluster << self.image.header.cluster_bits),
        };
        if let Some(at) = again {
            return Ok(Reservation {
                offset,
                len: one,
                file,
                at,
                is_zero: false,
            });
        }
        let has_no_room = |first: Cluster, next: Cluster, distance: u64| {
            writes_alike(first, next, distance) && !matches!(next, Cluster::Zero { room: Some(_) })
        };
        let (_, len) = self.image.run(offset, len, has_no_room)?;
        let first = self.allocate(len.div_ceil(cluster_len))?;
        Ok(Reservation {
            offset,
            len,
            file,
            at: first << self.image.header.cluster_bits,
            is_zero: true,
        })
    }

    fn commit(&mut self, reservation: &Reservation) -> io::Result<()> {
        let cluster_len = self.cluster_len();
        let mut done = 0;
        while done < reservation.len {
            self.set(reservation.offset + done, (reservation.at + done) | COPIED)?;
            done += cluster_len;
        }
        Ok(())
    }

    fn cancel(&mut self, reservation: Reservation) {
        // Room of a cluster that is zero stays that cluster's.
        if let Ok(Cluster::Zero { room: Some(room) }) = self.cluster_at(reservation.offset)
            && room == reservation.at
        {
            return;
        }
        let bits = self.image.header.cluster_bits;
        let clusters = reservation.len.div_ceil(self.cluster_len());
        let first = reservation.at >> bits;
        self.returned.extend(first..first + clusters);
    }

    fn zero(&mut self, offset: u64, len: u64, _: bool) -> io::Result<(Zeroing, u64)> {
        let alike = |first: Cluster, next: Cluster, distance: u64| match (
            own_data(first),
            own_data(next),
        ) {
            (Some(a), Some(b)) => a + distance == b,
            (None, None) => std::mem::discriminant(&first) == std::mem::discriminant(&next),
            _ => false,
        };
        let (cluster, len) = self.image.run(offset, len, alike)?;
        if cluster == Cluster::Wrong {
            return Err(wrong_entry(offset));
        }
        if let Some(start) = own_data(cluster) {
            self.image.check_run(start, len)?;
            return Ok((Zeroing::InPlace(self.image.id, start), len));
        }
        Ok((self.zero_run(offset, len, cluster)?, len))
    }

    fn begin_flush(&mut self) -> io::Result<FlushStep> {
        let flush = match &mut self.flush {
            Some(flush) => {
                self.is_older = true;
                flush
            }
            none => {
                let refcounts = self.refcounts.begin_flush();
                let mapping = self.image.tables.begin_flush();
                none.insert(Flush::new(refcounts, mapping))
            }
        };
        flush.begin(&self.image.file)?;
        Ok(FlushStep::Sync(self.image.id))
    }

    fn continue_flush(&mut self) -> io::Result<FlushStep> {
        let Some(flush) = &mut self.flush else {
            return Ok(FlushStep::Done);
        };
        if flush.go_on(&self.image.file)? {
            return Ok(FlushStep::Sync(self.image.id));
        }
        let freed = self.flush.take().map(|flush| flush.freed);
        self.image.tables.end_flush();
        self.refcounts.end_flush();
        for cluster in freed.unwrap_or_default() {
            let image = &mut self.image;
            self.refcounts
                .set(&image.file, &mut image.metadata, cluster, false)?;
        }
        if std::mem::take(&mut self.is_older) {
            return self.begin_flush();
        }
        Ok(FlushStep::Done)
    }

    fn close(&mut self) -> io::Result<()> {
        for cluster in std::mem::take(&mut self.returned) {
            let image = &mut self.image;
            self.refcounts
                .set(&image.file, &mut image.metadata, cluster, false)?;
        }
        // Once more for what the first flush has freed.
        self.flush_now()?;
        self.flush_now()?;
        // The file was grown in advance.
        let end = self.refcounts.end();
        match self.image.file_len > end {
            true => self.image.file.set_len(end),
            false => Ok(()),
        }
    }
}
