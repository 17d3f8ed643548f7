//! Virtio (OASIS virtio 1.2): what a device is, its queues, its PCI transport, and the devices.

pub mod device;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use device::{ActivateError, Activation, DeviceType, QueueHandle, VirtioDevice, VirtioInterrupt};
