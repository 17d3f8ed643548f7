//! An image as the layer of a disk that is written to.

use std::io;

use super::Qcow2Error;
use super::entry::{COPIED, Cluster, ZERO};
use super::flush::Flush;
use super::read_only::{Qcow2ReadOnly, own_data, writes_alike, wrong_entry};
use super::refcounts::Refcounts;
use crate::virtio::block::layers::{
    Extent, FlushStep, Layer, Reservation, Target, TopLayer, Zeroing,
};

/// The file grows by at least this much: setting its length for each cluster would cost more
/// than the clusters.
const GROWTH: u64 = 16 << 20;

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
