//! Files through `io_uring`: many operations in flight from one thread.

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};

use io_uring::{IoUring, opcode, squeue, types};
use vmm_sys_util::eventfd::EventFd;

use super::{DiskFile, FileId, MAX_VECTORS, Step, Transfers, advance, fallocate_of};
use crate::virtio::block::backend::{Completion, DiskOperation};

/// Operations in flight at once, of all queues together. Each holds its vectors in the host's
/// memory: 128 of 256 vectors are half a megabyte at most.
const MAX_IN_FLIGHT: u32 = 128;

struct Flight {
    tag: usize,
    file: FileId,
    operation: DiskOperation,
}

/// The ring. Every slot has at most one entry in it, which therefore never overflows.
pub struct UringTransfers {
    /// The files; none is taken out while something is in flight.
    pub(super) files: Vec<DiskFile>,
    event: EventFd,
    slots: Vec<Option<Flight>>,
    /// Slots without a flight.
    free: Vec<usize>,
    ring: IoUring,
    /// Operations that could not even be put into the ring.
    failed: Vec<Completion>,
}

impl UringTransfers {
    /// Transfers with no files yet.
    ///
    /// # Errors
    /// When the host does not allow `io_uring` or has no resources for it.
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder().dontfork().build(MAX_IN_FLIGHT)?;
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        let slots: Vec<_> = (0..MAX_IN_FLIGHT).map(|_| None).collect();
        Ok(Self {
            files: Vec::new(),
            event,
            free: (0..slots.len()).rev().collect(),
            slots,
            ring,
            failed: Vec::new(),
        })
    }

    /// Puts the operation of `slot`, or what is left of it, into the ring.
    fn push(&mut self, slot: usize) {
        let Some(Some(flight)) = self.slots.get(slot) else {
            return;
        };
        let file = self.files.get(flight.file.0).ok_or(io::ErrorKind::NotFound);
        let entry = file.map_err(io::Error::from).and_then(|file| {
            let fd = types::Fd(file.descriptor(&flight.operation));
            entry(fd, &flight.operation)
        });
        let pushed = entry.and_then(|entry| {
            let entry = entry.user_data(slot as u64);
            let mut submission = self.ring.submission();
            // SAFETY: vectors and memory belong to the flight, which stays in its slot until the
            // kernel has completed it.
            unsafe { submission.push(&entry) }.map_err(|_| io::ErrorKind::WouldBlock.into())
        });
        if let Err(error) = pushed
            && let Some(tag) = self.vacate(slot)
        {
            self.fail(tag, error);
        }
    }

    /// Forgets what is in `slot`: its tag.
    fn vacate(&mut self, slot: usize) -> Option<usize> {
        let flight = self.slots.get_mut(slot).and_then(Option::take)?;
        self.free.push(slot);
        Some(flight.tag)
    }

    fn fail(&mut self, tag: usize, error: io::Error) {
        self.failed.push(Completion {
            tag,
            result: Err(error),
        });
        self.wake();
    }

    fn answered(&mut self, slot: usize, answer: i32, finished: &mut Vec<Completion>) {
        let Some(Some(flight)) = self.slots.get_mut(slot) else {
            return;
        };
        match advance(&mut flight.operation, answer.into()) {
            Step::Again => self.push(slot),
            Step::Done(result) => {
                if let Some(tag) = self.vacate(slot) {
                    finished.push(Completion { tag, result });
                }
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }
}

fn entry(fd: types::Fd, operation: &DiskOperation) -> io::Result<squeue::Entry> {
    let entry = match operation {
        DiskOperation::Read { offset, buffers } => {
            let left = buffers.left();
            let count = u32::try_from(left.len().min(MAX_VECTORS)).map_err(io::Error::other)?;
            opcode::Readv::new(fd, left.as_ptr(), count)
                .offset(*offset)
                .build()
        }
        DiskOperation::Write { offset, buffers } => {
            let left = buffers.left();
            let count = u32::try_from(left.len().min(MAX_VECTORS)).map_err(io::Error::other)?;
            opcode::Writev::new(fd, left.as_ptr(), count)
                .offset(*offset)
                .build()
        }
        DiskOperation::Flush => opcode::Fsync::new(fd)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        DiskOperation::Discard { .. } | DiskOperation::WriteZeroes { .. } => {
            let (mode, offset, len) = fallocate_of(operation).unwrap_or_default();
            opcode::Fallocate::new(fd, len)
                .offset(offset)
                .mode(mode)
                .build()
        }
    };
    Ok(entry)
}

impl Transfers for UringTransfers {
    fn capacity(&self) -> usize {
        self.slots.len()
    }

    fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    fn start(&mut self, tag: usize, file: FileId, operation: DiskOperation) {
        let Some(slot) = self.free.pop() else {
            return self.fail(tag, io::ErrorKind::WouldBlock.into());
        };
        if let Some(entry) = self.slots.get_mut(slot) {
            *entry = Some(Flight {
                tag,
                file,
                operation,
            });
        }
        self.push(slot);
    }

    fn submit(&mut self) {
        let nothing = self.ring.submission().is_empty();
        if !nothing && self.ring.submit().is_err() {
            // The kernel is short of memory or was interrupted. The entries stay in the ring:
            // the event leads to another round and to another try.
            self.wake();
        }
    }

    fn take_completions(&mut self, finished: &mut Vec<Completion>) {
        // Only clears the counter; what completes after this line sets it again.
        let _ = self.event.read();
        finished.append(&mut self.failed);
        loop {
            let next = self.ring.completion().next();
            let Some(completion) = next else { return };
            let slot = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
            self.answered(slot, completion.result(), finished);
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        if !self.failed.is_empty() {
            return Ok(());
        }
        match self.ring.submit_and_wait(1) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    fn wake(&self) {
        // Fails only when the counter is full: then it is readable already.
        let _ = self.event.write(1);
    }
}

impl Drop for UringTransfers {
    fn drop(&mut self) {
        let mut finished = Vec::new();
        self.take_completions(&mut finished);
        while !self.is_idle() {
            if self.wait().is_err() {
                // The kernel may still write to the buffers: they stay mapped for good.
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
            self.take_completions(&mut finished);
        }
    }
}
