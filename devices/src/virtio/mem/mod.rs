//! Memory that comes and goes in blocks while the guest runs (virtio 1.2, 5.15).
//!
//! The region is guest memory from the start, and the host gives pages as they are touched: to plug
//! a block is the guest's permission to itself, so to speak, and to unplug it gives its pages back.
//! A guest that uses blocks which it has not plugged takes pages that its pod's control group
//! bounds, like all others.

mod blocks;
mod handler;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message as _;

use self::blocks::Blocks;
pub use self::blocks::MemRegion;
use self::handler::MemHandler;
use super::device::{
    ActivateError, Activation, DeviceType, QueueHandle, Reset, VirtioDevice, VirtioInterrupt,
};
use crate::event_loop::{EventLoop, HandlerId};

/// The guest promises not to touch blocks that are not plugged.
const F_UNPLUGGED_INACCESSIBLE: u32 = 1;

const REQUEST_QUEUE: u16 = 0;
const QUEUE_SIZES: [u16; 1] = [128];

/// The host's side: how much the guest shall have, and how much it has.
#[derive(Clone)]
pub struct MemControl {
    shared: Arc<Shared>,
}

impl MemControl {
    /// Asks the guest to have `bytes` of the region plugged; parts of blocks and what is more
    /// than the region are left out. Returns what that makes.
    pub fn request(&self, bytes: u64) -> u64 {
        let region = self.region();
        let wanted = bytes.min(region.len);
        let wanted = wanted - wanted % region.block_len;
        self.shared.requested.store(wanted, Ordering::Release);
        let interrupt = self.shared.interrupt().clone();
        if let Some(interrupt) = interrupt {
            interrupt.config();
        }
        wanted
    }

    /// How many bytes the guest shall have plugged.
    #[must_use]
    pub fn requested(&self) -> u64 {
        self.shared.requested.load(Ordering::Acquire)
    }

    /// How many bytes it has plugged.
    #[must_use]
    pub fn plugged(&self) -> u64 {
        self.shared.blocks().plugged_len()
    }

    /// How many of its requests made no sense.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> MemRegion {
        self.shared.blocks().region()
    }
}

struct Shared {
    blocks: Mutex<Blocks>,
    requested: AtomicU64,
    refused: AtomicU64,
    interrupt: Mutex<Option<Arc<dyn VirtioInterrupt>>>,
}

impl Shared {
    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interrupt(&self) -> MutexGuard<'_, Option<Arc<dyn VirtioInterrupt>>> {
        self.interrupt
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The memory device. Its region is part of guest memory, private and anonymous.
pub struct Mem {
    io: EventLoop,
    shared: Arc<Shared>,
    active: Option<HandlerId>,
}

impl Mem {
    /// A device without a plugged block that is served by `io`, and its control.
    #[must_use]
    pub fn new(region: MemRegion, io: EventLoop) -> (Self, MemControl) {
        let shared = Arc::new(Shared {
            blocks: Mutex::new(Blocks::new(region)),
            requested: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            interrupt: Mutex::default(),
        });
        let control = MemControl {
            shared: Arc::clone(&shared),
        };
        let device = Self {
            io,
            shared,
            active: None,
        };
        (device, control)
    }

    /// `struct virtio_mem_config` (virtio 1.2, 5.15.4).
    fn config(&self) -> [u64; 7] {
        let blocks = self.shared.blocks();
        let region = blocks.region();
        let node = 0;
        let usable = region.len;
        [
            region.block_len,
            node,
            region.base,
            region.len,
            usable,
            blocks.plugged_len(),
            self.shared.requested.load(Ordering::Acquire),
        ]
    }
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> DeviceType {
        DeviceType::Mem
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn device_features(&self) -> u64 {
        1 << F_UNPLUGGED_INACCESSIBLE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config().map(u64::to_le_bytes);
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        data.fill(0);
        for (to, from) in data
            .iter_mut()
            .zip(config.as_flattened().iter().skip(skipped))
        {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if activation.queues.is_empty() {
            return Err(ActivateError::QueueMissing(REQUEST_QUEUE));
        }
        // From here on a new size is announced; the driver reads the present one itself.
        *self.shared.interrupt() = Some(Arc::clone(&activation.interrupt));
        let handler = Box::new(MemHandler::new(activation, Arc::clone(&self.shared)));
        let attached = self.io.attach(handler);
        let action = "watch the memory device's queue";
        self.active = Some(attached.map_err(|source| ActivateError::Host { action, source })?);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<QueueHandle> {
        *self.shared.interrupt() = None;
        let handler = self.active.take().and_then(|id| self.io.detach(id));
        handler
            .map(|handler| handler.into_queues())
            .unwrap_or_default()
    }

    /// Blocks stay plugged when a driver resets the device. A machine that starts over has none;
    /// its memory is emptied as a whole, this device's as well.
    fn reset(&mut self, reset: Reset) {
        if reset == Reset::Machine {
            self.shared.blocks().clear();
        }
    }

    fn save(&self) -> Vec<u8> {
        let requested = self.shared.requested.load(Ordering::Acquire);
        let plugged = self.shared.blocks().words().to_vec();
        MemState { requested, plugged }.encode_to_vec()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), prost::DecodeError> {
        let MemState { requested, plugged } = MemState::decode(state)?;
        if !self.shared.blocks().set_words(&plugged) {
            #[expect(deprecated, reason = "there is no other way to refuse a state")]
            return Err(prost::DecodeError::new("blocks of another region"));
        }
        self.shared.requested.store(requested, Ordering::Release);
        Ok(())
    }
}

impl Drop for Mem {
    fn drop(&mut self) {
        self.deactivate();
    }
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct MemState {
    /// Bytes.
    #[prost(uint64, tag = "1")]
    requested: u64,
    /// A bit for each block.
    #[prost(uint64, repeated, tag = "2")]
    plugged: Vec<u64>,
}

#[cfg(test)]
mod tests;
