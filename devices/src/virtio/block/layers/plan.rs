//! Reads and writes as transfers with the layers' files.

use std::io;

use super::{Extent, LayeredDisk, Place, Reservation, Stack, Target};
use crate::virtio::block::backend::{DiskOperation, Iovecs};
use crate::virtio::block::transfer::FileId;

/// Pieces of an operation that are begun at once. The rest follows: no request of a guest makes
/// the host keep a list as long as it likes.
pub const MAX_PIECES: usize = 64;

/// Some transfers.
type Transfers = Vec<(FileId, DiskOperation)>;

/// What an operation, or the first part of it, consists of.
#[derive(Debug, Default)]
pub struct Plan {
    /// Transfers to begin with, in any order.
    pub first: Transfers,
    /// Those that follow when the first ones have ended.
    pub then: Transfers,
    /// Room that has its data when all have ended.
    pub reserved: Vec<Reservation>,
    /// Bytes of buffers for clusters that are filled.
    pub fill: u64,
    /// What is left of the operation.
    pub rest: Option<DiskOperation>,
}

impl Plan {
    /// Whether it is long enough.
    pub fn is_full(&self) -> bool {
        self.first.len() + self.then.len() + self.reserved.len() >= MAX_PIECES
    }
}

impl LayeredDisk {
    pub(super) fn read(&mut self, tag: usize, offset: u64, buffers: Iovecs) -> io::Result<()> {
        let (mut plan, mut done, len) = (Plan::default(), 0, buffers.len());
        let mut pieces = 0;
        while done < len {
            if pieces == MAX_PIECES {
                let (offset, buffers) = (offset + done, buffers.part(done, len - done));
                plan.rest = Some(DiskOperation::Read { offset, buffers });
                break;
            }
            let extent = self.stack.locate(offset + done, len - done)?;
            let part_len = extent.len;
            // Most reads are of one piece.
            if part_len == len {
                place(extent, buffers, &mut plan.first);
                break;
            }
            place(extent, buffers.part(done, part_len), &mut plan.first);
            done += part_len;
            pieces += 1;
        }
        self.carry_out(tag, plan);
        Ok(())
    }

    pub(super) fn write(&mut self, tag: usize, offset: u64, buffers: Iovecs) -> io::Result<()> {
        let mut plan = Plan::default();
        match self.plan_write(&mut plan, offset, buffers) {
            Ok(()) => {
                self.carry_out(tag, plan);
                Ok(())
            }
            Err(error) => self.give_up(plan, error),
        }
    }

    /// Gives back what a plan has reserved that cannot be carried out because of `error`.
    pub(super) fn give_up(&mut self, plan: Plan, error: io::Error) -> io::Result<()> {
        let top = self.stack.writable()?;
        for reservation in plan.reserved {
            top.cancel(reservation);
        }
        Err(error)
    }

    fn plan_write(&mut self, plan: &mut Plan, offset: u64, buffers: Iovecs) -> io::Result<()> {
        let (mut done, len) = (0, buffers.len());
        while done < len {
            if plan.is_full() {
                let (offset, buffers) = (offset + done, buffers.part(done, len - done));
                plan.rest = Some(DiskOperation::Write { offset, buffers });
                break;
            }
            let at = offset + done;
            let target = self.stack.writable()?.target(at, len - done)?;
            let part = buffers.part(done, target.len);
            match target {
                Target {
                    place: Some((file, offset)),
                    ..
                } => {
                    let buffers = part;
                    let write = DiskOperation::Write { offset, buffers };
                    plan.first.push((file, write));
                    done += target.len;
                }
                Target { place: None, .. } => done += self.plan_new(plan, at, part)?,
            }
        }
        Ok(())
    }

    /// Plans a write to clusters that the top layer does not have: what of them is not written
    /// comes from below. Returns for how many bytes of `data` that was.
    pub(super) fn plan_new(
        &mut self,
        plan: &mut Plan,
        offset: u64,
        data: Iovecs,
    ) -> io::Result<u64> {
        let disk_len = self.stack.len();
        let top = self.stack.writable()?;
        let cluster_len = top.cluster_len();
        let end = offset.saturating_add(data.len());
        let first = offset - offset % cluster_len;
        let whole = end.checked_next_multiple_of(cluster_len).unwrap_or(end);
        let reservation = top.reserve(first, whole.min(disk_len) - first)?;
        let reserved_end = reservation.offset.saturating_add(reservation.len);
        let data_end = end.min(reserved_end);
        let mut fills = Fills::default();
        let head = fills.add(&mut self.stack, plan, first..offset);
        let tail = head.and_then(|head| {
            let tail = fills.add(&mut self.stack, plan, data_end..reserved_end)?;
            Ok((head, tail))
        });
        let (file, at, is_zero) = (reservation.file, reservation.at, reservation.is_zero);
        plan.reserved.push(reservation);
        let (head, tail) = tail?;
        let data = data.part(0, data_end - offset);
        // Room that is zero needs no more zeros.
        let (at, buffers) = if is_zero && !fills.have_data {
            (at + (offset - first), data)
        } else {
            plan.fill += head.len() + tail.len();
            let mut buffers = head;
            buffers.append(data);
            buffers.append(tail);
            (at, buffers)
        };
        let offset_in_file = at;
        plan.then.push((
            file,
            DiskOperation::Write {
                offset: offset_in_file,
                buffers,
            },
        ));
        Ok(data_end - offset)
    }
}

/// The parts of clusters that a write leaves as they are.
#[derive(Default)]
struct Fills {
    /// Whether there is anything but zeros in them.
    have_data: bool,
}

impl Fills {
    /// A buffer for a range of less than a cluster, which the plan's first transfers fill.
    fn add(
        &mut self,
        stack: &mut Stack,
        plan: &mut Plan,
        range: std::ops::Range<u64>,
    ) -> io::Result<Iovecs> {
        let len = range.end.saturating_sub(range.start);
        let buffer = Iovecs::zeros(usize::try_from(len).map_err(io::Error::other)?);
        let mut done = 0;
        while done < len {
            let extent = stack.locate(range.start + done, len - done)?;
            let part = buffer.part(done, extent.len);
            done += extent.len;
            if !matches!(extent.place, Place::Zeros | Place::Below) {
                self.have_data = true;
                place(extent, part, &mut plan.first);
            }
        }
        Ok(buffer)
    }
}

/// Reads an extent to `buffers`: by a transfer, or at once.
fn place(extent: Extent, mut buffers: Iovecs, transfers: &mut Transfers) {
    match extent.place {
        Place::File { file, offset } => {
            transfers.push((file, DiskOperation::Read { offset, buffers }));
        }
        Place::Zeros | Place::Below => buffers.zero(),
        Place::Bytes { bytes, skip } => buffers.copy_in(bytes.get(skip..).unwrap_or_default()),
    }
}
