//! What every virtio device offers its transport, and what it is handed when a driver is ready.

use std::io;
use std::sync::Arc;

use thiserror::Error;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use crate::GuestMemory;

/// Virtio device type numbers (virtio 1.2, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum DeviceType {
    /// Network card.
    Net = 1,
    /// Block device.
    Block = 2,
    /// Console and ports.
    Console = 3,
    /// Entropy source.
    Rng = 4,
    /// Memory balloon.
    Balloon = 5,
    /// Socket transport.
    Vsock = 19,
    /// Memory that comes and goes.
    Mem = 24,
    /// File system.
    Fs = 26,
}

/// One ready queue: it belongs to the device from activation to reset.
pub struct QueueHandle {
    /// Position in the device's [`VirtioDevice::queue_max_sizes`].
    pub index: u16,
    /// The rings, validated against guest memory when the driver enabled them.
    pub queue: Queue,
    /// Readable when the driver has notified the queue. The transport keeps it too, so that
    /// no activation makes or duplicates descriptors.
    pub notify: Arc<EventFd>,
}

/// Interrupts from a device to its driver.
pub trait VirtioInterrupt: Send + Sync {
    /// Tells the driver that the queue `index` has used buffers. Devices ask the queue
    /// (`needs_notification`) first.
    fn queue(&self, index: u16);
    /// What does as [`Self::queue`] does when it is written, without this process: for queues
    /// that somebody else serves. `None` where interrupts go no such way.
    fn queue_event(&self, index: u16) -> Option<Arc<EventFd>> {
        let _ = index;
        None
    }
    /// Tells the driver that the configuration space changed.
    fn config(&self);
    /// The device cannot go on: sets `DEVICE_NEEDS_RESET` and interrupts (virtio 1.2, 2.1.2).
    fn needs_reset(&self, cause: &str);
}

/// Who resets a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// Its driver, also before it uses the device for the first time.
    Driver,
    /// The machine, which is as at power-on afterwards.
    Machine,
}

/// All that a device gets when its driver sets `DRIVER_OK`.
pub struct Activation {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// Features both sides accepted, as a bit mask.
    pub driver_features: u64,
    /// The queues the driver enabled, in index order; others are absent.
    pub queues: Vec<QueueHandle>,
    /// The way to the driver.
    pub interrupt: Arc<dyn VirtioInterrupt>,
}

/// Why a device could not start.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// The driver did not enable a queue the device cannot work without.
    #[error("queue {0} is not enabled")]
    QueueMissing(u16),
    /// A resource of the host is not to be had.
    #[error("cannot {action}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

/// A virtio device behind a transport.
///
/// The transport calls from vCPU threads, one call at a time, and keeps the order of the
/// specification: `activate` only after feature negotiation, and only once before
/// `deactivate`. vCPU threads run under a system call filter: a device has its threads and
/// descriptors from its construction on and makes none in these calls.
pub trait VirtioDevice: Send {
    /// What kind of device this is.
    fn device_type(&self) -> DeviceType;
    /// The largest size of each queue; its length is the number of queues.
    fn queue_max_sizes(&self) -> &[u16];
    /// Features the device offers. The transport adds `VIRTIO_F_VERSION_1`,
    /// `VIRTIO_F_RING_EVENT_IDX` and `VIRTIO_F_RING_INDIRECT_DESC`.
    fn device_features(&self) -> u64;
    /// Reads the device-specific configuration; bytes beyond its end are zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes the device-specific configuration; most devices have nothing writable.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }
    /// Whether the device makes use of [`VirtioInterrupt::queue_event`].
    fn wants_queue_events(&self) -> bool {
        false
    }
    /// Starts serving the queues. On failure the transport sets `DEVICE_NEEDS_RESET`.
    ///
    /// # Errors
    /// [`ActivateError`] when the device cannot serve its driver.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;
    /// Stops every use of guest memory before it returns, finishes or forgets what was in
    /// flight, and gives the queues back as they stand, in index order (none when inactive).
    /// The device can be activated again: after a driver's reset with fresh queues, after a
    /// pause with these.
    fn deactivate(&mut self) -> Vec<QueueHandle>;
    /// Forgets what a driver has made of the device beyond its queues; called while deactivated.
    fn reset(&mut self, reset: Reset) {
        let _ = reset;
    }
    /// The device's own state as a versioned prost message; called while deactivated.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }
    /// Takes back what [`Self::save`] gave.
    ///
    /// # Errors
    /// A message when `state` is not one of this device.
    fn restore(&mut self, state: &[u8]) -> Result<(), prost::DecodeError> {
        let _ = state;
        Ok(())
    }
}
