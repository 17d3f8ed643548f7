//! A device in its slot, of whichever kind.

use std::sync::Arc;

use podvisor_devices::bus::BusDevice;
use podvisor_devices::pci::{PciDevice, PciFunction};
use podvisor_devices::virtio::pci::{StateError, VirtioPciDevice};

/// A device behind its function.
#[derive(Clone)]
pub(super) enum Seat {
    /// Behind virtio's transport.
    Virtio(Arc<VirtioPciDevice>),
    /// Any other.
    Plain(Arc<dyn PciDevice>),
}

impl Seat {
    pub(super) fn bar(&self) -> (u64, u64) {
        match self {
            Self::Virtio(device) => device.bar(),
            Self::Plain(device) => device.bar(),
        }
    }

    pub(super) fn on_bus(&self) -> Arc<dyn BusDevice> {
        match self {
            Self::Virtio(device) => device.clone(),
            Self::Plain(device) => device.clone(),
        }
    }

    pub(super) fn function(&self) -> Arc<dyn PciFunction> {
        match self {
            Self::Virtio(device) => device.clone(),
            Self::Plain(device) => device.clone(),
        }
    }

    pub(super) fn power_on(&self) {
        match self {
            Self::Virtio(device) => device.power_on(),
            Self::Plain(device) => device.power_on(),
        }
    }

    pub(super) fn pause(&self) {
        match self {
            Self::Virtio(device) => device.pause(),
            Self::Plain(device) => device.pause(),
        }
    }

    pub(super) fn resume(&self) {
        match self {
            Self::Virtio(device) => device.resume(),
            Self::Plain(device) => device.resume(),
        }
    }

    pub(super) fn save(&self) -> Result<Vec<u8>, StateError> {
        match self {
            Self::Virtio(device) => device.save(),
            Self::Plain(device) => Ok(device.save()),
        }
    }

    pub(super) fn restore(&self, state: &[u8]) -> Result<(), StateError> {
        match self {
            Self::Virtio(device) => device.restore(state),
            Self::Plain(device) => Ok(device.restore(state)?),
        }
    }
}
