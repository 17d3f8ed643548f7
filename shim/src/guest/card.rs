//! The network cards of a guest.

use std::sync::Arc;

use podvisor_devices::event_loop::EventLoop;
use podvisor_devices::net::{MacAddress, Mtu, Net, NetConfig, QueuePair};
use podvisor_vmm::{DeviceSlot, PciSlot};

use super::LaunchError;
use super::launch::device;
use crate::host::{Nic, NicQueue};

/// A card.
pub struct Card {
    /// What is behind it.
    pub nic: Nic,
    /// Its place on the bus.
    pub pci: Option<u8>,
}

impl From<Nic> for Card {
    fn from(nic: Nic) -> Self {
        let pci = None;
        Self { nic, pci }
    }
}

impl Card {
    /// The device, served by `io` where the host's kernel does not.
    ///
    /// # Errors
    /// [`LaunchError::Device`].
    pub(super) fn slot(self, io: EventLoop) -> Result<DeviceSlot, LaunchError> {
        let Self { nic, pci } = self;
        let mac = MacAddress::try_from(nic.mac).map_err(device("net"))?;
        let mtu = u16::try_from(nic.mtu)
            .ok()
            .and_then(|mtu| Mtu::try_from(mtu).ok());
        let pair = |NicQueue { tap, vhost }| QueuePair {
            backend: Arc::new(tap),
            vhost,
        };
        let pairs = nic.queues.into_iter().map(pair).collect();
        let address = pci.map(|slot| PciSlot::try_from(u32::from(slot)));
        Ok(DeviceSlot {
            name: nic.name,
            address: address.transpose().map_err(device("net"))?,
            device: Box::new(Net::new(NetConfig { mac, mtu }, pairs, io)),
        })
    }
}
