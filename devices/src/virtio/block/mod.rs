//! The block device (virtio 1.2, 5.2): a disk for the guest, served by a thread of its own.

pub mod backend;
mod failures;
mod handler;
pub mod image;
mod iovecs;
mod layers;
mod limit;
mod qcow2;
mod raw;
pub mod reader;
mod request;
mod transfer;
mod writethrough;

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use thiserror::Error;

use self::backend::DiskBackend;
pub use self::failures::FailureListener;
use self::failures::FailureLog;
use self::handler::{BlockHandler, DiskParts};
use self::limit::Limiter;
pub use self::limit::RateLimits;
use self::request::{Disk, ID_LEN, SECTOR_LEN};
use super::device::{ActivateError, Activation, DeviceType, QueueHandle, VirtioDevice};
use crate::event_loop::{EventLoop, HandlerId};

/// Size of each queue.
const QUEUE_SIZE: u16 = 256;
/// Most queues of a disk: one for each vCPU that a guest may have.
pub const MAX_QUEUES: u16 = 254;
/// Data buffers of a request.
const SEG_MAX: u32 = 254;
/// All buffers of a request: data, header and status.
const MAX_BUFFERS: usize = SEG_MAX as usize + 2;
/// Most sectors of a discard or write-zeroes request: 2 GiB, so that none takes very long.
const MAX_FREE_SECTORS: u32 = 4 << 20;

/// Features (virtio 1.2, 5.2.3).
mod feature {
    pub const SEG_MAX: u32 = 2;
    pub const READ_ONLY: u32 = 5;
    pub const BLOCK_SIZE: u32 = 6;
    pub const FLUSH: u32 = 9;
    pub const MULTI_QUEUE: u32 = 12;
    pub const DISCARD: u32 = 13;
    pub const WRITE_ZEROES: u32 = 14;
}

/// What a guest reads as the disk's serial number: up to 20 bytes of printable ASCII.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockSerial([u8; ID_LEN]);

/// Text that is no serial number.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a disk's serial number is up to 20 characters of printable ASCII")]
pub struct InvalidSerial;

impl TryFrom<&str> for BlockSerial {
    type Error = InvalidSerial;

    fn try_from(text: &str) -> Result<Self, InvalidSerial> {
        let mut bytes = [0; ID_LEN];
        let place = bytes.get_mut(..text.len()).ok_or(InvalidSerial)?;
        if !text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() || byte == b' ')
        {
            return Err(InvalidSerial);
        }
        place.copy_from_slice(text.as_bytes());
        Ok(Self(bytes))
    }
}

/// How a disk is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockConfig {
    /// Refuse writes.
    pub read_only: bool,
    /// The serial number.
    pub serial: BlockSerial,
    /// Number of queues, 1 to [`MAX_QUEUES`]; others are brought into that range.
    pub queues: u16,
    /// Rates that the disk keeps to.
    pub limits: RateLimits,
}

impl Default for BlockConfig {
    /// A disk that is written to, with one queue and no limits.
    fn default() -> Self {
        Self {
            read_only: false,
            serial: BlockSerial::default(),
            queues: 1,
            limits: RateLimits::default(),
        }
    }
}

/// What a disk has done so far.
#[derive(Debug, Default)]
pub struct BlockMetrics {
    /// Requests answered.
    pub requests: AtomicU64,
    /// Those of them answered with an error.
    pub failed: AtomicU64,
    /// Chains that were no requests.
    pub malformed: AtomicU64,
}

/// The block device.
pub struct Block {
    config: BlockConfig,
    is_durable: bool,
    disk: Disk,
    queue_sizes: Vec<u16>,
    parts: DiskParts,
    thread: EventLoop,
    active: Option<HandlerId>,
}

impl Block {
    /// A disk with the data of `backend`, served by `thread`. Several disks may share a thread;
    /// each then waits while the host is slow to start another one's operation.
    ///
    /// # Errors
    /// When the host has no timer to spare for limited rates.
    pub fn new(
        config: BlockConfig,
        backend: Box<dyn DiskBackend>,
        thread: EventLoop,
    ) -> io::Result<Self> {
        let queues = config.queues.clamp(1, MAX_QUEUES);
        let BlockSerial(id) = config.serial;
        let disk = Disk {
            len: backend.disk_len(),
            read_only: config.read_only,
        };
        let limiter = Limiter::new(config.limits)?;
        Ok(Self {
            config,
            is_durable: backend.is_durable(),
            disk,
            queue_sizes: vec![QUEUE_SIZE; usize::from(queues)],
            parts: DiskParts {
                backend: Arc::new(Mutex::new(backend)),
                disk,
                id,
                limiter: limiter.map(|limiter| Arc::new(Mutex::new(limiter))),
                metrics: Arc::default(),
                failures: Arc::new(FailureLog::default()),
            },
            thread,
            active: None,
        })
    }

    /// Has `listener` told of operations that the host cannot do, of one in ten seconds. It is called on the
    /// disk's thread and must not wait. To be set before the disk is used.
    pub fn on_failure(&mut self, listener: FailureListener) {
        self.parts.failures = Arc::new(FailureLog::new(listener));
    }

    /// What the disk has done so far.
    #[must_use]
    pub fn metrics(&self) -> Arc<BlockMetrics> {
        Arc::clone(&self.parts.metrics)
    }

    /// `struct virtio_blk_config` (virtio 1.2, 5.2.4).
    fn config_space(&self) -> [u8; 60] {
        let mut space = [0; 60];
        let queues = u16::try_from(self.queue_sizes.len()).unwrap_or(MAX_QUEUES);
        let sector_len = u32::try_from(SECTOR_LEN).unwrap_or(0);
        let mut put = |offset: usize, value: &[u8]| {
            for (to, from) in space.iter_mut().skip(offset).zip(value) {
                *to = *from;
            }
        };
        put(0, &(self.disk.len / SECTOR_LEN).to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &sector_len.to_le_bytes());
        put(34, &queues.to_le_bytes());
        // Discard: sectors and segments of a request, alignment; then zeroes, may unmap.
        put(36, &MAX_FREE_SECTORS.to_le_bytes());
        put(40, &1_u32.to_le_bytes());
        put(44, &1_u32.to_le_bytes());
        put(48, &MAX_FREE_SECTORS.to_le_bytes());
        put(52, &1_u32.to_le_bytes());
        put(56, &[1]);
        space
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn device_features(&self) -> u64 {
        let always = 1 << feature::SEG_MAX | 1 << feature::BLOCK_SIZE;
        // Without it drivers take every write for durable (virtio 1.2, 5.2.5).
        let flush = u64::from(!self.is_durable) << feature::FLUSH;
        let queues = u64::from(self.queue_sizes.len() > 1) << feature::MULTI_QUEUE;
        let access = match self.config.read_only {
            true => 1 << feature::READ_ONLY,
            false => 1 << feature::DISCARD | 1 << feature::WRITE_ZEROES,
        };
        always | flush | queues | access
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        data.fill(0);
        for (to, from) in data
            .iter_mut()
            .zip(self.config_space().into_iter().skip(skipped))
        {
            *to = from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if activation.queues.is_empty() {
            return Err(ActivateError::QueueMissing(0));
        }
        let handler = BlockHandler::new(activation, self.parts.clone());
        let attached = self.thread.attach(Box::new(handler));
        let action = "watch the disk's queues";
        self.active = Some(attached.map_err(|source| ActivateError::Host { action, source })?);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<QueueHandle> {
        let handler = self.active.take().and_then(|id| self.thread.detach(id));
        handler
            .map(|handler| handler.into_queues())
            .unwrap_or_default()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.deactivate();
    }
}

#[cfg(test)]
mod tests;
