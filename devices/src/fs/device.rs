//! The virtio device (virtio 1.2, section 5.11): its configuration and its life.

use std::io;
use std::sync::Arc;

use thiserror::Error;

use super::exports::Exports;
use super::fuse::FuseServer;
use super::pool::{Pool, ThreadStart};
use super::session::Session;
use crate::virtio::{ActivateError, Activation, DeviceType, QueueHandle, Reset, VirtioDevice};

/// The length of the tag in the configuration space, in bytes.
const TAG_LEN: usize = 36;
/// The largest queue: a request of 1 MiB takes 256 pages and four descriptors more, and a
/// power of two is asked for.
const QUEUE_SIZE: u16 = 512;
/// Request queues at most.
const REQUEST_QUEUES_MAX: u16 = 64;
/// Threads at most: more than a host's disk can be kept busy with by one guest.
const THREADS_MAX: usize = 16;
/// The queue of FUSE_FORGET and the like.
const HIGH_PRIORITY_QUEUE: u16 = 0;

/// Why a file system device could not be made.
#[derive(Debug, Error)]
pub enum FsError {
    /// The tag is empty, too long or has a NUL.
    #[error("a tag has 1 to {TAG_LEN} bytes and no NUL")]
    Tag,
    /// There are too few or too many request queues.
    #[error("{0} request queues are not between 1 and {REQUEST_QUEUES_MAX}")]
    Queues(u16),
    /// There are too few or too many threads.
    #[error("{0} threads are not between 1 and {THREADS_MAX}")]
    Threads(usize),
    /// The threads do not start.
    #[error("cannot start the file system's threads")]
    Start(#[source] io::Error),
}

/// The name a guest mounts the file system by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsTag([u8; TAG_LEN]);

impl TryFrom<&str> for FsTag {
    type Error = FsError;

    fn try_from(tag: &str) -> Result<Self, FsError> {
        if tag.is_empty() || tag.len() > TAG_LEN || tag.contains('\0') {
            return Err(FsError::Tag);
        }
        let mut bytes = [0; TAG_LEN];
        bytes
            .iter_mut()
            .zip(tag.bytes())
            .for_each(|(to, from)| *to = from);
        Ok(Self(bytes))
    }
}

/// What a file system device is like.
#[derive(Clone, Copy, Debug)]
pub struct FsConfig {
    /// The name the guest mounts it by.
    pub tag: FsTag,
    /// Queues for requests, 1 to 64. A guest's kernel spreads its CPUs over them.
    pub request_queues: u16,
    /// Threads that serve them, 1 to 16: requests that may wait for the host's disks at once.
    pub threads: usize,
}

impl FsConfig {
    /// One request queue served by two threads.
    #[must_use]
    pub fn new(tag: FsTag) -> Self {
        Self {
            tag,
            request_queues: 1,
            threads: 2,
        }
    }
}

/// A virtio file system device.
pub struct VirtioFs {
    queue_sizes: Vec<u16>,
    /// The configuration space: tag and number of request queues (virtio 1.2, 5.11.4).
    config: [u8; TAG_LEN + 4],
    server: Arc<FuseServer>,
    pool: Pool,
}

impl VirtioFs {
    /// A device that shows `exports` to its guest. Its threads start here, each with `on_start`,
    /// so the calling thread must have no system call filter that they should not inherit.
    ///
    /// # Errors
    /// [`FsError`] when the configuration is out of bounds or the threads do not start.
    pub fn new(
        config: FsConfig,
        exports: &Exports,
        on_start: &ThreadStart,
    ) -> Result<Self, FsError> {
        if config.request_queues == 0 || config.request_queues > REQUEST_QUEUES_MAX {
            return Err(FsError::Queues(config.request_queues));
        }
        if config.threads == 0 || config.threads > THREADS_MAX {
            return Err(FsError::Threads(config.threads));
        }
        let mut space = [0; TAG_LEN + 4];
        let count = u32::from(config.request_queues).to_le_bytes();
        let bytes = config.tag.0.into_iter().chain(count);
        space
            .iter_mut()
            .zip(bytes)
            .for_each(|(to, from)| *to = from);
        Ok(Self {
            queue_sizes: vec![QUEUE_SIZE; 1 + usize::from(config.request_queues)],
            config: space,
            server: Arc::new(FuseServer::new(exports)),
            pool: Pool::start(config.threads, on_start).map_err(FsError::Start)?,
        })
    }
}

impl VirtioDevice for VirtioFs {
    fn device_type(&self) -> DeviceType {
        DeviceType::Fs
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn device_features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.config.get(offset..).unwrap_or_default();
        let bytes = bytes.iter().copied().chain(std::iter::repeat(0));
        data.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let first_request = HIGH_PRIORITY_QUEUE + 1;
        for needed in [HIGH_PRIORITY_QUEUE, first_request] {
            if !activation.queues.iter().any(|queue| queue.index == needed) {
                return Err(ActivateError::QueueMissing(needed));
            }
        }
        self.pool
            .begin(Session::new(activation, Arc::clone(&self.server)))
            .map_err(|source| ActivateError::Host {
                action: "watch the queues",
                source,
            })
    }

    fn deactivate(&mut self) -> Vec<QueueHandle> {
        self.pool.end()
    }

    fn reset(&mut self, _: Reset) {
        // A kernel that was reset, or replaced by another one, has unmounted nothing. What it had
        // open on the host is closed now, not when the next one mounts the file system, if it does.
        self.server.forget_guest();
    }
}
