//! Places devices on the PCI bus and wires them to KVM.

mod seat;
mod slots;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use podvisor_devices::GuestMemory;
use podvisor_devices::bus::BusError;
use podvisor_devices::interrupt::MsiSink;
use podvisor_devices::pci::root::SlotError;
use podvisor_devices::pci::{PciDevice, PciRoot};
use podvisor_devices::virtio::pci::{BAR_LEN, VirtioPciDevice};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use self::seat::Seat;
use crate::arch::layout;
use crate::config::{DeviceSlot, PciSlot};
use crate::exit::Buses;
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
    /// The machine was built without PCI devices, and so without a bus for more.
    #[error("the machine has no PCI bus")]
    NoBus,
    /// Two devices are to be in the same place.
    #[error("devices {first} and {second} both want PCI slot {slot}")]
    Collision {
        /// Which place.
        slot: PciSlot,
        /// Name of one's slot.
        first: String,
        /// Name of the other's.
        second: String,
    },
    /// All slots of the bus are taken.
    #[error("all {max} PCI slots are taken", max = layout::PCI_MAX_DEVICES)]
    Full,
    /// No plugged device has that name.
    #[error("there is no plugged device {0}")]
    Missing(String),
    /// The configuration window has no place; a defect of the memory map.
    #[error("the configuration window has no place")]
    Window(#[source] BusError),
}

/// From one BAR to the next in the 64-bit window.
const BAR_STEP: usize = 0x8000;
const _: () = assert!(BAR_STEP as u64 == BAR_LEN);

/// Told of a device that cannot go on: its name, and why.
pub(crate) type OnFailure = Arc<dyn Fn(&str, &str) + Send + Sync>;

/// What a device is connected to.
pub(crate) struct Wiring {
    /// Where notifications and interrupts go through.
    pub vm: Arc<VmFd>,
    /// The guest's memory.
    pub memory: GuestMemory,
    /// Takes interrupt messages.
    pub msi: Arc<dyn MsiSink>,
    /// Where processors find the device.
    pub buses: Arc<Buses>,
}

/// A device that is no virtio device.
pub(crate) struct PlainSlot {
    /// What errors and logs call it.
    pub name: &'static str,
    /// Where it is to be on the bus, if that matters.
    pub address: Option<PciSlot>,
    /// Makes it, with its BAR at an address.
    pub make: Box<dyn FnOnce(u64) -> io::Result<Arc<dyn PciDevice>>>,
}

/// The BAR of a device that is there from the start.
fn first_bar(number: u8) -> u64 {
    layout::PCI_WINDOW_32.base + u64::from(number.saturating_sub(1)) * layout::PCI_BAR_STRIDE
}

/// A device in its slot.
struct Seated {
    name: String,
    device: Seat,
    /// Whether it was plugged into the running machine, and may leave it.
    plugged: bool,
}

/// A machine's PCI devices.
pub(crate) struct PciDevices {
    wiring: Wiring,
    /// None in a machine that was built without devices.
    root: Option<Arc<PciRoot>>,
    /// By slot.
    seats: Mutex<BTreeMap<u8, Seated>>,
}

impl PciDevices {
    /// Puts `slots` and `plain` devices on a new bus. Without any there is no bus. `on_failure`
    /// hears of the former, not of devices that are plugged later: a machine goes on without those.
    pub(crate) fn place(
        slots: Vec<DeviceSlot>,
        plain: Vec<PlainSlot>,
        wiring: Wiring,
        on_failure: &OnFailure,
    ) -> Result<Self, PciError> {
        let virtio = slots.iter().map(|slot| (slot.name.as_str(), slot.address));
        let others = plain.iter().map(|slot| (slot.name, slot.address));
        let mut numbers = slots::assign(&virtio.chain(others).collect::<Vec<_>>())?.into_iter();
        let mut devices = Self {
            wiring,
            root: None,
            seats: Mutex::default(),
        };
        if slots.is_empty() && plain.is_empty() {
            return Ok(devices);
        }
        let root = Arc::new(PciRoot::new());
        let window = layout::PCI_ECAM;
        let mmio = &devices.wiring.buses.mmio;
        mmio.insert(window.base, window.len, root.clone())
            .map_err(PciError::Window)?;
        devices.root = Some(root);
        for (slot, number) in slots.into_iter().zip(&mut numbers) {
            let (seated, device) = devices.seat(number, slot, first_bar(number), false)?;
            let (failed, on_failure) = (seated.name.clone(), Arc::clone(on_failure));
            let tell = move |cause: &str| on_failure(&failed, cause);
            device.on_failure(Box::new(tell));
            devices.lock().insert(number, seated);
        }
        for (slot, number) in plain.into_iter().zip(numbers) {
            let made = (slot.make)(first_bar(number));
            let device = made.map_err(|source| PciError::Device {
                device: slot.name.to_owned(),
                source,
            })?;
            let seated = Seated {
                name: slot.name.to_owned(),
                device: Seat::Plain(device),
                plugged: false,
            };
            devices.connect(number, &seated)?;
            devices.lock().insert(number, seated);
        }
        Ok(devices)
    }

    /// Puts a device on the bus of the running machine. The guest finds it when it scans the bus.
    ///
    /// A BAR answers at one address only. That address is the one Linux gives to a function it
    /// finds on a scan, whatever its BAR says: the lowest that is free in the 64-bit window
    /// (drivers/pci/setup-res.c).
    pub(crate) fn plug(&self, slot: DeviceSlot) -> Result<(), PciError> {
        let mut seats = self.lock();
        let number = match slot.address {
            Some(address) => match seats.get(&address.get()) {
                None => address.get(),
                Some(seated) => {
                    return Err(PciError::Collision {
                        slot: address,
                        first: seated.name.clone(),
                        second: slot.name,
                    });
                }
            },
            None => slots::numbers()
                .find(|number| !seats.contains_key(number))
                .ok_or(PciError::Full)?,
        };
        let taken = |bar| seats.values().any(|seated| seated.device.bar().0 == bar);
        let mut bars = (layout::PCI_WINDOW_64.base..).step_by(BAR_STEP);
        let bar = bars.find(|&bar| !taken(bar)).ok_or(PciError::Full)?;
        let name = slot.name.clone();
        let (seated, device) = self.seat(number, slot, bar, true)?;
        let tell = move |cause: &str| tracing::warn!(device = name, cause, "a device failed");
        device.on_failure(Box::new(tell));
        seats.insert(number, seated);
        Ok(())
    }

    /// Takes a plugged device off the bus, whether its driver still uses it or not. Waits for
    /// what the device is doing.
    pub(crate) fn unplug(&self, name: &str) -> Result<(), PciError> {
        let mut seats = self.lock();
        let found = seats
            .iter()
            .find(|(_, seated)| seated.plugged && seated.name == name)
            .map(|(number, _)| *number);
        let number = found.ok_or_else(|| PciError::Missing(name.to_owned()))?;
        if let Some(seated) = seats.remove(&number) {
            self.unseat(number, &seated);
        }
        Ok(())
    }

    /// Wraps a virtio device and connects it; nothing of one that fails is left.
    fn seat(
        &self,
        number: u8,
        slot: DeviceSlot,
        bar: u64,
        plugged: bool,
    ) -> Result<(Seated, Arc<VirtioPciDevice>), PciError> {
        let DeviceSlot { name, device, .. } = slot;
        let Wiring { memory, msi, .. } = &self.wiring;
        let made = VirtioPciDevice::new(device, Arc::clone(memory), Arc::clone(msi), bar);
        let device = made.map_err(|source| PciError::Device {
            device: name.clone(),
            source,
        })?;
        let seated = Seated {
            name,
            device: Seat::Virtio(Arc::clone(&device)),
            plugged,
        };
        self.connect(number, &seated)?;
        Ok((seated, device))
    }

    /// Puts a device where processors find it; it is nowhere after an error.
    fn connect(&self, number: u8, seated: &Seated) -> Result<(), PciError> {
        let root = self.root.as_ref().ok_or(PciError::NoBus)?;
        let Seated { name, device, .. } = seated;
        let (base, len) = device.bar();
        let placed = self.wiring.buses.mmio.insert(base, len, device.on_bus());
        placed.map_err(|source| PciError::Place {
            device: name.clone(),
            source,
        })?;
        let wired = self.each_notifier(device, VmFd::register_ioevent);
        let wired = wired.map_err(|source| PciError::Notify {
            device: name.clone(),
            source,
        });
        // The slot last, so that the guest finds the device whole.
        let inserted = wired.and_then(|()| {
            let inserted = root.insert(number, device.function());
            inserted.map_err(|source| PciError::Slot {
                device: name.clone(),
                source,
            })
        });
        if inserted.is_err() {
            self.disconnect(device);
        }
        inserted
    }

    /// The reverse of [`Self::seat`].
    fn unseat(&self, number: u8, seated: &Seated) {
        if let Some(root) = &self.root {
            root.remove(number);
        }
        self.disconnect(&seated.device);
    }

    fn disconnect(&self, device: &Seat) {
        if let Err(error) = self.each_notifier(device, VmFd::unregister_ioevent) {
            // KVM lets go of it with the machine; until then a write there wakes nobody.
            tracing::warn!(%error, "a notification address stays wired");
        }
        self.wiring.buses.mmio.remove(device.bar().0);
    }

    /// Notifications are event files inside KVM: the processor goes back into the guest at once.
    fn each_notifier(
        &self,
        device: &Seat,
        wire: fn(&VmFd, &EventFd, &IoEventAddress, NoDatamatch) -> Result<(), kvm_ioctls::Error>,
    ) -> Result<(), kvm_ioctls::Error> {
        let Seat::Virtio(device) = device else {
            return Ok(());
        };
        for notifier in device.notifiers() {
            let address = IoEventAddress::Mmio(notifier.address);
            wire(&self.wiring.vm, notifier.event, &address, NoDatamatch)?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u8, Seated>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine's reset: all devices are as they came up.
    pub(crate) fn power_on(&self) {
        for seated in self.lock().values() {
            seated.device.power_on();
        }
    }

    /// Stops all devices; afterwards nothing of them touches guest memory.
    pub(crate) fn pause(&self) {
        for seated in self.lock().values() {
            seated.device.pause();
        }
    }

    /// Lets all devices go on.
    pub(crate) fn resume(&self) {
        for seated in self.lock().values() {
            seated.device.resume();
        }
    }

    /// The states of the paused devices in slot order.
    pub(crate) fn save(&self) -> Result<Vec<DeviceState>, StateError> {
        let save = |seated: &Seated| {
            let failed = |source| StateError::Device {
                device: seated.name.clone(),
                source,
            };
            Ok(DeviceState {
                name: seated.name.clone(),
                state: seated.device.save().map_err(failed)?,
            })
        };
        self.lock().values().map(save).collect()
    }

    /// Puts states into new devices in the same slots; they stay paused.
    pub(crate) fn restore(&self, states: &[DeviceState]) -> Result<(), StateError> {
        let seats = self.lock();
        let ours = seats.values().map(|seated| &seated.name);
        if !ours.eq(states.iter().map(|state| &state.name)) {
            return Err(StateError::Mismatch("devices"));
        }
        for (seated, saved) in seats.values().zip(states) {
            let failed = |source| StateError::Device {
                device: seated.name.clone(),
                source,
            };
            seated.device.restore(&saved.state).map_err(failed)?;
        }
        Ok(())
    }
}
