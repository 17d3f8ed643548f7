//! Layers as a disk: operations are split into transfers with the layers' files.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use super::busy::BusyRanges;
use super::plan::Plan;
use super::{FlushStep, Reservation, Stack};
use crate::virtio::block::backend::{Completion, DiskBackend, DiskOperation};
use crate::virtio::block::transfer::{CacheMode, FileId, Transfers};

/// Bytes of clusters being filled at once; further writes that need it wait. One write more may
/// exceed it by the two clusters at its ends.
const MAX_FILL: u64 = 8 << 20;

/// What an operation does when its transfers have ended.
enum Stage {
    /// It has ended, too.
    Transfers,
    /// The clusters that it fills have been read: the writes follow.
    Fill(Vec<(FileId, DiskOperation)>),
    /// What it reserved has its data.
    Store,
    /// The layer goes on with its flush.
    Flush,
}

/// An operation in flight.
struct Operation {
    tag: usize,
    stage: Stage,
    /// Transfers that have not ended.
    pending: usize,
    result: io::Result<()>,
    reserved: Vec<Reservation>,
    /// Bytes of [`MAX_FILL`] that it uses.
    fill: u64,
    is_flush: bool,
    /// What is left to do of it, when it is a long one.
    rest: Option<DiskOperation>,
}

/// The disk.
pub struct LayeredDisk {
    transfers: Box<dyn Transfers>,
    pub(super) stack: Stack,
    heeds_flushes: bool,
    operations: Vec<Option<Operation>>,
    free: Vec<usize>,
    /// Transfers in flight, and those for which there is no room yet.
    transferring: usize,
    backlog: VecDeque<(usize, FileId, DiskOperation)>,
    pub(super) busy: BusyRanges,
    fill: u64,
    is_flushing: bool,
    /// Operations that wait for another to end.
    waiting: VecDeque<(usize, DiskOperation)>,
    finished: Vec<Completion>,
    /// Kept for its memory.
    batch: Vec<Completion>,
    /// Whether somebody is about to look at what has finished.
    is_reaping: bool,
}

impl LayeredDisk {
    /// The disk that `stack` is, with its files in `transfers`.
    #[must_use]
    pub fn new(transfers: Box<dyn Transfers>, stack: Stack, cache: CacheMode) -> Self {
        Self {
            transfers,
            stack,
            heeds_flushes: cache != CacheMode::Unsafe,
            operations: Vec::new(),
            free: Vec::new(),
            transferring: 0,
            backlog: VecDeque::new(),
            busy: BusyRanges::default(),
            fill: 0,
            is_flushing: false,
            waiting: VecDeque::new(),
            finished: Vec::new(),
            batch: Vec::new(),
            is_reaping: false,
        }
    }

    fn begin(&mut self, tag: usize, operation: DiskOperation) {
        let outcome = match operation {
            DiskOperation::Read { offset, buffers } => self.read(tag, offset, buffers),
            DiskOperation::Flush => self.flush(tag),
            DiskOperation::Write { .. }
            | DiskOperation::Discard { .. }
            | DiskOperation::WriteZeroes { .. } => self.change(tag, operation),
        };
        if let Err(error) = outcome {
            self.finish(tag, Err(error));
        }
    }

    /// Begins an operation that changes the disk, or lets it wait for another one.
    fn change(&mut self, tag: usize, operation: DiskOperation) -> io::Result<()> {
        let reach = self.reach(&operation)?;
        if self.busy.overlap(&reach) || self.fill >= MAX_FILL {
            self.waiting.push_back((tag, operation));
            return Ok(());
        }
        match operation {
            DiskOperation::Write { offset, buffers } => self.write(tag, offset, buffers),
            DiskOperation::Discard { offset, len } => self.discard(tag, offset, len),
            DiskOperation::WriteZeroes { offset, len, unmap } => {
                self.write_zeroes(tag, offset, len, unmap)
            }
            DiskOperation::Read { .. } | DiskOperation::Flush => Ok(()),
        }
    }

    /// The whole clusters that an operation touches.
    fn reach(&mut self, operation: &DiskOperation) -> io::Result<std::ops::Range<u64>> {
        let cluster_len = self.stack.writable()?.cluster_len();
        let (offset, len) = match operation {
            DiskOperation::Read { offset, buffers } | DiskOperation::Write { offset, buffers } => {
                (*offset, buffers.len())
            }
            DiskOperation::Discard { offset, len }
            | DiskOperation::WriteZeroes { offset, len, .. } => (*offset, *len),
            DiskOperation::Flush => (0, 0),
        };
        let end = offset.saturating_add(len);
        let end = end.checked_next_multiple_of(cluster_len).unwrap_or(end);
        Ok(offset - offset % cluster_len..end)
    }

    fn flush(&mut self, tag: usize) -> io::Result<()> {
        let Ok(top) = self.stack.writable() else {
            self.finish(tag, Ok(()));
            return Ok(());
        };
        if !self.heeds_flushes {
            self.finish(tag, Ok(()));
            return Ok(());
        }
        if self.is_flushing {
            self.waiting.push_back((tag, DiskOperation::Flush));
            return Ok(());
        }
        match top.begin_flush()? {
            FlushStep::Done => self.finish(tag, Ok(())),
            FlushStep::Sync(file) => {
                self.is_flushing = true;
                let id = self.admit(tag, Stage::Flush);
                self.transfer(id, file, DiskOperation::Flush);
            }
        }
        Ok(())
    }

    /// Carries out a plan for the operation `tag`.
    pub(super) fn carry_out(&mut self, tag: usize, plan: Plan) {
        let Plan {
            first,
            then,
            reserved,
            fill,
            rest,
        } = plan;
        let stage = match (then.is_empty(), reserved.is_empty()) {
            (false, _) => Stage::Fill(then),
            (true, false) => Stage::Store,
            (true, true) => Stage::Transfers,
        };
        let id = self.admit(tag, stage);
        for Reservation { offset, len, .. } in &reserved {
            self.busy.add(id, *offset..offset.saturating_add(*len));
        }
        self.fill += fill;
        if let Some(operation) = self.operation(id) {
            operation.reserved = reserved;
            operation.fill = fill;
            operation.rest = rest;
        }
        for (file, operation) in first {
            self.transfer(id, file, operation);
        }
        self.settle(id);
    }

    fn admit(&mut self, tag: usize, stage: Stage) -> usize {
        let operation = Some(Operation {
            tag,
            pending: 0,
            result: Ok(()),
            reserved: Vec::new(),
            fill: 0,
            is_flush: matches!(stage, Stage::Flush),
            stage,
            rest: None,
        });
        let Some(id) = self.free.pop() else {
            self.operations.push(operation);
            return self.operations.len() - 1;
        };
        if let Some(slot) = self.operations.get_mut(id) {
            *slot = operation;
        }
        id
    }

    fn operation(&mut self, id: usize) -> Option<&mut Operation> {
        self.operations.get_mut(id)?.as_mut()
    }

    fn transfer(&mut self, id: usize, file: FileId, operation: DiskOperation) {
        if let Some(owner) = self.operation(id) {
            owner.pending += 1;
        }
        if self.transferring < self.transfers.capacity() {
            self.transferring += 1;
            self.transfers.start(id, file, operation);
        } else {
            self.backlog.push_back((id, file, operation));
        }
    }

    fn transferred(&mut self, id: usize, result: io::Result<()>) {
        self.transferring -= 1;
        if let Some((next, file, operation)) = self.backlog.pop_front() {
            self.transferring += 1;
            self.transfers.start(next, file, operation);
        }
        if let Some(owner) = self.operation(id) {
            owner.pending -= 1;
            if owner.result.is_ok() {
                owner.result = result;
            }
            self.settle(id);
        }
    }

    /// Goes on with an operation that has no transfer in flight.
    fn settle(&mut self, id: usize) {
        while let Some(operation) = self.operation(id) {
            if operation.pending > 0 {
                return;
            }
            let stage = std::mem::replace(&mut operation.stage, Stage::Transfers);
            let is_good = operation.result.is_ok();
            match stage {
                Stage::Fill(then) if is_good => {
                    operation.stage = Stage::Store;
                    for (file, write) in then {
                        self.transfer(id, file, write);
                    }
                }
                Stage::Store if is_good => {
                    let reserved = std::mem::take(&mut operation.reserved);
                    let result = self.commit(reserved);
                    if let Some(operation) = self.operation(id) {
                        operation.result = result;
                    }
                }
                Stage::Flush if is_good => self.go_on_flushing(id),
                Stage::Fill(_) | Stage::Store | Stage::Flush | Stage::Transfers => {
                    return self.end(id);
                }
            }
        }
    }

    fn commit(&mut self, reserved: Vec<Reservation>) -> io::Result<()> {
        let top = self.stack.writable()?;
        let mut result = Ok(());
        for reservation in reserved {
            match result.is_ok().then(|| top.commit(&reservation)) {
                Some(Ok(())) => {}
                // The layer may have a part of it: the room must not be used again.
                Some(Err(error)) => result = Err(error),
                None => top.cancel(reservation),
            }
        }
        result
    }

    fn go_on_flushing(&mut self, id: usize) {
        let next = self.stack.writable().and_then(|top| top.continue_flush());
        let Some(operation) = self.operation(id) else {
            return;
        };
        match next {
            Ok(FlushStep::Done) => {}
            Ok(FlushStep::Sync(file)) => {
                operation.stage = Stage::Flush;
                self.transfer(id, file, DiskOperation::Flush);
            }
            Err(error) => operation.result = Err(error),
        }
    }

    /// An operation has ended: those that waited for it go on.
    fn end(&mut self, id: usize) {
        let Some(operation) = self.operations.get_mut(id).and_then(Option::take) else {
            return;
        };
        self.free.push(id);
        self.busy.release(id);
        self.fill -= operation.fill;
        self.is_flushing &= !operation.is_flush;
        if let Ok(top) = self.stack.writable() {
            for reservation in operation.reserved {
                top.cancel(reservation);
            }
        }
        match (operation.result, operation.rest) {
            (Ok(()), Some(rest)) => {
                self.waiting.push_front((operation.tag, rest));
                self.wake();
            }
            (result, _) => self.finish(operation.tag, result),
        }
    }

    fn finish(&mut self, tag: usize, result: io::Result<()>) {
        self.finished.push(Completion { tag, result });
        self.wake();
    }

    /// Has [`DiskBackend::take_completions`] called, unless it is running.
    fn wake(&self) {
        if !self.is_reaping {
            self.transfers.wake();
        }
    }

    /// Begins what waited. What has to wait longer is put back in the same order.
    fn resume(&mut self) {
        for (tag, operation) in std::mem::take(&mut self.waiting) {
            self.begin(tag, operation);
        }
    }
}

impl DiskBackend for LayeredDisk {
    fn disk_len(&self) -> u64 {
        self.stack.len()
    }

    fn max_in_flight(&self) -> usize {
        self.transfers.capacity()
    }

    fn event(&self) -> RawFd {
        self.transfers.event()
    }

    fn start(&mut self, tag: usize, operation: DiskOperation) {
        self.begin(tag, operation);
    }

    fn submit(&mut self) {
        self.transfers.submit();
    }

    fn take_completions(&mut self, finished: &mut Vec<Completion>) {
        self.is_reaping = true;
        let mut batch = std::mem::take(&mut self.batch);
        self.transfers.take_completions(&mut batch);
        for Completion { tag, result } in batch.drain(..) {
            self.transferred(tag, result);
        }
        self.batch = batch;
        self.resume();
        finished.append(&mut self.finished);
        self.is_reaping = false;
        if self.transferring == 0 && !self.waiting.is_empty() {
            self.wake();
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        // Without a transfer there is nothing to wait for: what waits can go on.
        if self.finished.is_empty() && self.transferring > 0 {
            self.transfers.wait()
        } else {
            Ok(())
        }
    }
}

impl Drop for LayeredDisk {
    /// What is in flight ends first: then the layer knows all that it has.
    fn drop(&mut self) {
        let mut finished = Vec::new();
        while self.operations.iter().any(Option::is_some) && self.wait().is_ok() {
            self.take_completions(&mut finished);
            finished.clear();
        }
        let closed = self.stack.writable().map(|top| top.close());
        if let Ok(Err(error)) = closed {
            tracing::error!(%error, "a disk's metadata could not be written: its image lacks the last writes");
        }
    }
}
