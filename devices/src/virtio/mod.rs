//! Virtio (OASIS virtio 1.2): what a device is, its queues, its PCI transport, and the devices.

pub mod device;

pub use device::{ActivateError, Activation, DeviceType, QueueHandle, VirtioDevice, VirtioInterrupt};
