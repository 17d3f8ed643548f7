//! Devices on the bus that are no virtio devices.

use prost::DecodeError;

use super::PciFunction;
use crate::bus::BusDevice;

/// A function with the device behind its one BAR. Accesses to the BAR are its [`BusDevice`].
pub trait PciDevice: PciFunction + BusDevice {
    /// Guest-physical address and length of the BAR.
    fn bar(&self) -> (u64, u64);
    /// The machine's reset: all is as it came up.
    fn power_on(&self);
    /// Holds the device. The vCPUs must not run.
    fn pause(&self);
    /// Lets the device go on.
    fn resume(&self);
    /// The state of the paused device, as a versioned message.
    fn save(&self) -> Vec<u8>;
    /// Takes back what [`Self::save`] gave; the device stays paused.
    ///
    /// # Errors
    /// A message when `state` is not one of this device.
    fn restore(&self, state: &[u8]) -> Result<(), DecodeError>;
}
