//! A disk whose writes are durable when they end: each is followed by a flush.

use std::io;
use std::os::fd::RawFd;

use super::backend::{Completion, DiskBackend, DiskOperation};

/// What an operation is waiting for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Its end.
    #[default]
    Last,
    /// Its end, and then that of a flush.
    Written,
}

/// The disk.
pub struct WritethroughDisk {
    disk: Box<dyn DiskBackend>,
    /// By tag.
    stages: Vec<Stage>,
}

impl WritethroughDisk {
    /// `disk` with durable writes.
    #[must_use]
    pub fn new(disk: Box<dyn DiskBackend>) -> Self {
        Self {
            stages: vec![Stage::Last; disk.max_in_flight()],
            disk,
        }
    }
}

impl DiskBackend for WritethroughDisk {
    fn disk_len(&self) -> u64 {
        self.disk.disk_len()
    }

    fn max_in_flight(&self) -> usize {
        self.disk.max_in_flight()
    }

    fn is_durable(&self) -> bool {
        true
    }

    fn event(&self) -> RawFd {
        self.disk.event()
    }

    fn start(&mut self, tag: usize, operation: DiskOperation) {
        if let Some(stage) = self.stages.get_mut(tag) {
            *stage = match operation {
                DiskOperation::Write { .. } | DiskOperation::WriteZeroes { .. } => Stage::Written,
                DiskOperation::Read { .. }
                | DiskOperation::Flush
                | DiskOperation::Discard { .. } => Stage::Last,
            };
        }
        self.disk.start(tag, operation);
    }

    fn submit(&mut self) {
        self.disk.submit();
    }

    fn take_completions(&mut self, finished: &mut Vec<Completion>) {
        let mut ended = Vec::new();
        self.disk.take_completions(&mut ended);
        for completion in ended {
            let stage = self.stages.get_mut(completion.tag).map(std::mem::take);
            match (stage, &completion.result) {
                (Some(Stage::Written), Ok(())) => {
                    self.disk.start(completion.tag, DiskOperation::Flush);
                }
                _ => finished.push(completion),
            }
        }
        self.disk.submit();
    }

    fn wait(&mut self) -> io::Result<()> {
        self.disk.wait()
    }
}
