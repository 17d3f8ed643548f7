//! The memory balloon (virtio 1.2, 5.5): guest memory that the guest does without, or does
//! not use, goes back to the host.

mod handler;
mod reclaim;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message as _;

use self::handler::BalloonHandler;
pub(crate) use self::reclaim::reclaim;
use super::device::{
    ActivateError, Activation, DeviceType, QueueHandle, Reset, VirtioDevice, VirtioInterrupt,
};
use crate::event_loop::{EventLoop, HandlerId};

/// The guest takes pages back before it kills a process (virtio 1.2, 5.5.3).
const F_DEFLATE_ON_OOM: u32 = 2;
/// The guest reports pages it does not use.
const F_REPORTING: u32 = 5;

const INFLATE_QUEUE: u16 = 0;
const DEFLATE_QUEUE: u16 = 1;
/// Inflate, deflate, and three places for the reporting queue: the specification numbers it
/// 4, but drivers skip the queues of features that are not offered (statistics and free page
/// hints), as Linux did before it followed the specification. Whichever of them the driver
/// enables is the reporting queue.
const QUEUE_SIZES: [u16; 5] = [128; 5];

const CONFIG_ACTUAL: u64 = 4;
/// The balloon's page, whatever the host's is (virtio 1.2, 5.5.6).
const PAGE_SHIFT: u32 = 12;

/// What the balloon offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonConfig {
    /// Whether the guest reports pages it does not use.
    pub reporting: bool,
}

/// The host's side of the balloon: its target, and what came of it.
#[derive(Clone)]
pub struct BalloonControl {
    shared: Arc<Shared>,
}

impl BalloonControl {
    /// Asks the guest to hold `pages` pages of 4 KiB in the balloon.
    pub fn set_target(&self, pages: u32) {
        self.shared.target.store(pages, Ordering::Release);
        let interrupt = self.shared.interrupt().clone();
        if let Some(interrupt) = interrupt {
            interrupt.config();
        }
    }

    /// As [`Self::set_target`], in bytes; a broken page is left out.
    pub fn set_target_bytes(&self, bytes: u64) {
        self.set_target(u32::try_from(bytes >> PAGE_SHIFT).unwrap_or(u32::MAX));
    }

    /// As [`Self::actual`], in bytes.
    #[must_use]
    pub fn held(&self) -> u64 {
        u64::from(self.actual()) << PAGE_SHIFT
    }

    /// How many pages of 4 KiB the guest says it holds in the balloon.
    #[must_use]
    pub fn actual(&self) -> u32 {
        self.shared.actual.load(Ordering::Acquire)
    }

    /// How many bytes were given back to the host so far. Pages that the guest takes again
    /// are not subtracted.
    #[must_use]
    pub fn reclaimed(&self) -> u64 {
        self.shared.reclaimed.load(Ordering::Relaxed)
    }

    /// How many ranges could not be given back: the guest named memory it does not have.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
struct Shared {
    target: AtomicU32,
    actual: AtomicU32,
    reclaimed: AtomicU64,
    refused: AtomicU64,
    interrupt: Mutex<Option<Arc<dyn VirtioInterrupt>>>,
}

impl Shared {
    fn interrupt(&self) -> MutexGuard<'_, Option<Arc<dyn VirtioInterrupt>>> {
        self.interrupt
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The balloon device. Guest memory has to be private and anonymous; of any other nothing is
/// given back.
pub struct Balloon {
    config: BalloonConfig,
    io: EventLoop,
    shared: Arc<Shared>,
    active: Option<HandlerId>,
}

impl Balloon {
    /// An empty balloon that is served by `io`, and its control.
    #[must_use]
    pub fn new(config: BalloonConfig, io: EventLoop) -> (Self, BalloonControl) {
        let shared = Arc::new(Shared::default());
        let control = BalloonControl {
            shared: Arc::clone(&shared),
        };
        (
            Self {
                config,
                io,
                shared,
                active: None,
            },
            control,
        )
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> DeviceType {
        DeviceType::Balloon
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn device_features(&self) -> u64 {
        1 << F_DEFLATE_ON_OOM | u64::from(self.config.reporting) << F_REPORTING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let target = self.shared.target.load(Ordering::Acquire).to_le_bytes();
        let actual = self.shared.actual.load(Ordering::Acquire).to_le_bytes();
        let config = target.into_iter().chain(actual);
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        data.fill(0);
        for (to, from) in data.iter_mut().zip(config.skip(skipped)) {
            *to = from;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (CONFIG_ACTUAL, Ok(actual)) = (offset, data.try_into()) {
            self.shared
                .actual
                .store(u32::from_le_bytes(actual), Ordering::Release);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        for index in [INFLATE_QUEUE, DEFLATE_QUEUE] {
            if !activation.queues.iter().any(|queue| queue.index == index) {
                return Err(ActivateError::QueueMissing(index));
            }
        }
        // From here on a new target is announced; the driver reads the present one itself.
        *self.shared.interrupt() = Some(Arc::clone(&activation.interrupt));
        let handler = Box::new(BalloonHandler::new(activation, Arc::clone(&self.shared)));
        let attached = self.io.attach(handler);
        let action = "watch the balloon's queues";
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

    fn reset(&mut self, _: Reset) {
        // The next driver begins with an empty balloon; the target is the host's.
        self.shared.actual.store(0, Ordering::Release);
    }

    fn save(&self) -> Vec<u8> {
        let target = self.shared.target.load(Ordering::Acquire);
        let actual = self.shared.actual.load(Ordering::Acquire);
        BalloonState { target, actual }.encode_to_vec()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), prost::DecodeError> {
        let BalloonState { target, actual } = BalloonState::decode(state)?;
        self.shared.target.store(target, Ordering::Release);
        self.shared.actual.store(actual, Ordering::Release);
        Ok(())
    }
}

impl Drop for Balloon {
    fn drop(&mut self) {
        self.deactivate();
    }
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct BalloonState {
    /// Pages of 4 KiB.
    #[prost(uint32, tag = "1")]
    target: u32,
    /// Pages of 4 KiB.
    #[prost(uint32, tag = "2")]
    actual: u32,
}

#[cfg(test)]
mod tests;
