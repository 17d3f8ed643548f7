//! Places virtio devices on the PCI bus and wires them to KVM.

use std::io;
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use podvisor_devices::GuestMemory;
use podvisor_devices::bus::{Bus, BusError};
use podvisor_devices::interrupt::MsiSink;
use podvisor_devices::pci::PciRoot;
use podvisor_devices::pci::root::SlotError;
use podvisor_devices::virtio::pci::VirtioPciDevice;
use thiserror::Error;

use crate::arch::layout;
use crate::config::DeviceSlot;
use crate::state::{DeviceState, StateError};

/// Why the PCI devices could not be set up.
#[derive(Debug, Error)]
pub enum PciError {
    /// More devices than a bus has slots.
    #[error("{0} PCI devices: a machine has at most {max}", max = layout::PCI_MAX_DEVICES)]
    TooMany(usize),
    /// The host lacks a resource for a device.
    #[error("cannot make device {device}")]
    Device {
        /// Name of its slot.
        device: String,
        /// What the host said.
        source: io::Error,
    },
    /// A place on the bus is taken; a defect of the memory map.
    #[error("device {device} has no place")]
    Place {
        /// Name of its slot.
        device: String,
        /// Which range.
        source: BusError,
    },
    /// A slot is taken; a defect of this module.
    #[error("device {device} has no slot")]
    Slot {
        /// Name of its slot.
        device: String,
        /// Which slot.
        source: SlotError,
    },
    /// KVM refuses a notification address.
    #[error("cannot wire the notifications of device {device}")]
    Notify {
        /// Name of its slot.
        device: String,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// The configuration window has no place; a defect of the memory map.
    #[error("the configuration window has no place")]
    Window(#[source] BusError),
}

/// Told of a device that cannot go on: its name, and why.
pub(crate) type OnFailure = Arc<dyn Fn(&str, &str) + Send + Sync>;

/// A machine's PCI devices in slot order.
#[derive(Default)]
pub(crate) struct PciDevices {
    devices: Vec<(String, Arc<VirtioPciDevice>)>,
}

impl PciDevices {
    /// Puts `slots` on a new bus behind `mmio`. Without any there is no bus.
    pub(crate) fn place(
        slots: Vec<DeviceSlot>,
        vm: &VmFd,
        memory: &GuestMemory,
        msi: &Arc<dyn MsiSink>,
        mmio: &Bus,
        on_failure: &OnFailure,
    ) -> Result<Self, PciError> {
        if slots.len() > layout::PCI_MAX_DEVICES {
            return Err(PciError::TooMany(slots.len()));
        }
        if slots.is_empty() {
            return Ok(Self::default());
        }
        let root = Arc::new(PciRoot::new());
        let window = layout::PCI_ECAM;
        mmio.insert(window.base, window.len, root.clone())
            .map_err(PciError::Window)?;
        let mut devices = Vec::with_capacity(slots.len());
        for (number, slot) in (1_u8..).zip(slots) {
            let name = slot.name.clone();
            let device = place_device(number, slot, memory, msi, &root, mmio)?;
            let (failed, on_failure) = (name.clone(), Arc::clone(on_failure));
            device.on_failure(Box::new(move |cause| on_failure(&failed, cause)));
            wire_notifiers(&device, vm).map_err(|source| PciError::Notify {
                device: name.clone(),
                source,
            })?;
            devices.push((name, device));
        }
        Ok(Self { devices })
    }

    /// Stops all devices; afterwards nothing of them touches guest memory.
    pub(crate) fn pause(&self) {
        for (_, device) in &self.devices {
            device.pause();
        }
    }

    /// Lets all devices go on.
    pub(crate) fn resume(&self) {
        for (_, device) in &self.devices {
            device.resume();
        }
    }

    /// The states of the paused devices in slot order.
    pub(crate) fn save(&self) -> Result<Vec<DeviceState>, StateError> {
        let save = |(name, device): &(String, Arc<VirtioPciDevice>)| {
            let failed = |source| StateError::Device {
                device: name.clone(),
                source,
            };
            Ok(DeviceState {
                name: name.clone(),
                state: device.save().map_err(failed)?,
            })
        };
        self.devices.iter().map(save).collect()
    }

    /// Puts states into new devices in the same slots; they stay paused.
    pub(crate) fn restore(&self, states: &[DeviceState]) -> Result<(), StateError> {
        let ours = self.devices.iter().map(|(name, _)| name);
        if !ours.eq(states.iter().map(|state| &state.name)) {
            return Err(StateError::Mismatch("devices"));
        }
        for ((name, device), saved) in self.devices.iter().zip(states) {
            let failed = |source| StateError::Device {
                device: name.clone(),
                source,
            };
            device.restore(&saved.state).map_err(failed)?;
        }
        Ok(())
    }
}

fn place_device(
    number: u8,
    slot: DeviceSlot,
    memory: &GuestMemory,
    msi: &Arc<dyn MsiSink>,
    root: &PciRoot,
    mmio: &Bus,
) -> Result<Arc<VirtioPciDevice>, PciError> {
    let DeviceSlot { name, device } = slot;
    let bar = layout::PCI_WINDOW_32.base + u64::from(number - 1) * layout::PCI_BAR_STRIDE;
    let device = VirtioPciDevice::new(device, Arc::clone(memory), Arc::clone(msi), bar).map_err(
        |source| PciError::Device {
            device: name.clone(),
            source,
        },
    )?;
    let (base, len) = device.bar();
    mmio.insert(base, len, device.clone())
        .map_err(|source| PciError::Place {
            device: name.clone(),
            source,
        })?;
    root.insert(number, device.clone())
        .map_err(|source| PciError::Slot {
            device: name,
            source,
        })?;
    Ok(device)
}

/// Notifications become event files inside KVM: the processor goes back into the guest at once.
fn wire_notifiers(device: &VirtioPciDevice, vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    for notifier in device.notifiers() {
        let address = IoEventAddress::Mmio(notifier.address);
        vm.register_ioevent(notifier.event, &address, NoDatamatch)?;
    }
    Ok(())
}
