//! Discards and zeros: whole clusters as the top layer does it, their parts as holes or writes.

use std::io;

use super::plan::Plan;
use super::{LayeredDisk, Place, Zeroing};
use crate::virtio::block::backend::{DiskOperation, Iovecs};

/// A range that is to become zeros.
#[derive(Clone, Copy, Debug)]
struct Zeros {
    offset: u64,
    len: u64,
    /// Whether it need not be zero afterwards: parts of clusters are not worth any trouble.
    is_discard: bool,
    keep_room: bool,
}

impl Zeros {
    /// The operation for a part of the range, at `offset`.
    fn operation(&self, offset: u64, len: u64) -> DiskOperation {
        match self.is_discard {
            true => DiskOperation::Discard { offset, len },
            false => DiskOperation::WriteZeroes {
                offset,
                len,
                unmap: !self.keep_room,
            },
        }
    }
}

impl LayeredDisk {
    pub(super) fn discard(&mut self, tag: usize, offset: u64, len: u64) -> io::Result<()> {
        self.zero(
            tag,
            Zeros {
                offset,
                len,
                is_discard: true,
                keep_room: false,
            },
        )
    }

    pub(super) fn write_zeroes(
        &mut self,
        tag: usize,
        offset: u64,
        len: u64,
        unmap: bool,
    ) -> io::Result<()> {
        self.zero(
            tag,
            Zeros {
                offset,
                len,
                is_discard: false,
                keep_room: !unmap,
            },
        )
    }

    fn zero(&mut self, tag: usize, zeros: Zeros) -> io::Result<()> {
        let mut plan = Plan::default();
        match self.plan_zeros(&mut plan, zeros) {
            Ok(()) => {
                self.carry_out(tag, plan);
                Ok(())
            }
            Err(error) => self.give_up(plan, error),
        }
    }

    fn plan_zeros(&mut self, plan: &mut Plan, zeros: Zeros) -> io::Result<()> {
        let disk_len = self.stack.len();
        let cluster_len = self.stack.writable()?.cluster_len();
        let (mut at, end) = (zeros.offset, zeros.offset.saturating_add(zeros.len));
        while at < end {
            if plan.is_full() {
                plan.rest = Some(zeros.operation(at, end - at));
                break;
            }
            // The disk's last cluster is whole where the disk ends.
            let whole_end = if end == disk_len {
                end
            } else {
                end - end % cluster_len
            };
            at += if at.is_multiple_of(cluster_len) && at < whole_end {
                self.plan_whole(plan, zeros, at, whole_end - at)?
            } else {
                let cluster_end = at - at % cluster_len + cluster_len;
                self.plan_part(plan, zeros, at, cluster_end.min(end) - at)?
            };
        }
        Ok(())
    }

    /// Plans whole clusters and returns for how many bytes.
    fn plan_whole(&mut self, plan: &mut Plan, zeros: Zeros, at: u64, len: u64) -> io::Result<u64> {
        let top = self.stack.writable()?;
        let (zeroing, len) = top.zero(at, len, zeros.keep_room)?;
        match zeroing {
            Zeroing::Done => Ok(len),
            Zeroing::InPlace(file, offset) => {
                plan.first.push((file, zeros.operation(offset, len)));
                Ok(len)
            }
            Zeroing::Reserve => {
                let reservation = top.reserve(at, len)?;
                let (file, offset, len) = (reservation.file, reservation.at, reservation.len);
                if !reservation.is_zero {
                    plan.first
                        .push((file, DiskOperation::Discard { offset, len }));
                }
                plan.reserved.push(reservation);
                Ok(len)
            }
        }
    }

    /// Plans a part of one cluster and returns how many bytes it has.
    fn plan_part(&mut self, plan: &mut Plan, zeros: Zeros, at: u64, len: u64) -> io::Result<u64> {
        let target = self.stack.writable()?.target(at, len)?;
        if let Some((file, offset)) = target.place {
            plan.first.push((file, zeros.operation(offset, target.len)));
            return Ok(target.len);
        }
        let len = target.len;
        if zeros.is_discard {
            return Ok(len);
        }
        let extent = self.stack.locate(at, len)?;
        if extent.len >= len && matches!(extent.place, Place::Zeros) {
            return Ok(len);
        }
        let buffers = Iovecs::zeros(usize::try_from(len).map_err(io::Error::other)?);
        plan.fill += len;
        self.plan_new(plan, at, buffers)
    }
}
