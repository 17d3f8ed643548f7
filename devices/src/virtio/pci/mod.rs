//! The modern virtio PCI transport (virtio 1.2, 4.1): one function with one BAR, which holds
//! the virtio structures, the notification addresses and the MSI-X tables.
//!
//! Interrupts are MSI-X only: the function has no interrupt pin, so a guest that refuses
//! message-signalled interrupts has to poll.
//!
//! A device serves its queues while three things hold: its driver has set `DRIVER_OK`, the
//! function is a bus master, and the machine is not paused. When the machine is paused, the device
//! is stopped and its queues are kept until it goes on. A function that ceases to be bus master
//! loses its queues until its driver has reset it: that is how a kernel lets go of a device before
//! it starts another one (kexec), which makes it bus master again before it resets it and has by
//! then other things where the rings were.

mod common;
mod interrupt;
mod layout;
mod queue;
mod routes;
mod state;
mod transport;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use self::interrupt::PciInterrupt;
use self::routes::QueueRoutes;
use self::transport::Transport;
use super::device::VirtioDevice;
use crate::GuestMemory;
use crate::bus::BusDevice;
use crate::interrupt::MsiSink;
use crate::pci::PciFunction;

pub use self::interrupt::OnFailure;
pub use self::layout::{BAR_LEN, MAX_QUEUES};
pub use self::queue::QueueError;
pub use self::state::StateError;

/// Where a driver's write means "look at this queue", for an ioeventfd.
#[derive(Clone, Copy)]
pub struct Notifier<'a> {
    /// Guest-physical address; the driver writes 2 or 4 bytes, their value does not matter.
    pub address: u64,
    /// What becomes readable.
    pub event: &'a EventFd,
}

/// A virtio device as a PCI function.
///
/// It is both the function on the [`PciRoot`](crate::pci::PciRoot) and the device behind its
/// BAR on the memory [`Bus`](crate::bus::Bus). It stops its device when it is dropped.
pub struct VirtioPciDevice {
    bar_address: u64,
    notify: Vec<Arc<EventFd>>,
    interrupt: Arc<PciInterrupt>,
    transport: Mutex<Transport>,
}

impl VirtioPciDevice {
    /// Wraps `device`, whose BAR of [`BAR_LEN`] bytes is assigned to `bar_address`.
    ///
    /// # Errors
    /// `InvalidInput` when the address is not aligned to the BAR's length or the queues are
    /// not what the transport can offer; what the host says when event files are not to be
    /// had.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        msi: Arc<dyn MsiSink>,
        bar_address: u64,
    ) -> io::Result<Arc<Self>> {
        let sizes = device.queue_max_sizes();
        let valid_sizes = sizes
            .iter()
            .all(|size| size.is_power_of_two() && *size <= queue::MAX_SIZE);
        let count = u16::try_from(sizes.len())
            .ok()
            .filter(|&count| count <= MAX_QUEUES);
        let (Some(count), true) = (count, valid_sizes && bar_address.is_multiple_of(BAR_LEN))
        else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let event = |_| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map(Arc::new);
        let notify = (0..count).map(event).collect::<io::Result<Vec<_>>>()?;
        let routes = if device.wants_queue_events() {
            QueueRoutes::new(count, &*msi)?
        } else {
            QueueRoutes::default()
        };
        let interrupt = PciInterrupt::new(device.device_type(), count, routes, msi);
        let interrupt = Arc::new(interrupt);
        let transport = Transport::new(
            device,
            memory,
            bar_address,
            Arc::clone(&interrupt),
            notify.clone(),
        )?;
        Ok(Arc::new(Self {
            bar_address,
            notify,
            interrupt,
            transport: Mutex::new(transport),
        }))
    }

    /// Has `on_failure` told once, of the first time the device needs a reset: it broke, or
    /// its driver broke a ring. It is called from any thread and must neither block nor call
    /// back into the device. Only the first call of this function counts.
    pub fn on_failure(&self, on_failure: OnFailure) {
        self.interrupt.set_on_failure(on_failure);
    }

    /// Guest-physical address and length of the BAR.
    #[must_use]
    pub fn bar(&self) -> (u64, u64) {
        (self.bar_address, BAR_LEN)
    }

    /// One notifier a queue. A write that still arrives through the bus does the same.
    #[must_use]
    pub fn notifiers(&self) -> Vec<Notifier<'_>> {
        let base = self.bar_address + layout::NOTIFY;
        let addresses = (base..).step_by(layout::NOTIFY_STRIDE as usize);
        let both = addresses.zip(&self.notify);
        both.map(|(address, event)| Notifier { address, event })
            .collect()
    }

    /// Stops the device and keeps its queues; no access to guest memory after it returns.
    /// The vCPUs must not run.
    pub fn pause(&self) {
        self.lock().set_paused(true);
    }

    /// Lets the device go on where [`Self::pause`] or [`Self::restore`] left it.
    pub fn resume(&self) {
        self.lock().set_paused(false);
    }

    /// The machine's reset: the device, its registers and its interrupts are as they came up; a
    /// paused device stays paused. The vCPUs must not run.
    pub fn power_on(&self) {
        self.lock().power_on();
    }

    /// The state of the paused device, as a versioned message.
    ///
    /// # Errors
    /// [`StateError::Running`] when it is not paused.
    pub fn save(&self) -> Result<Vec<u8>, StateError> {
        self.lock().save()
    }

    /// Takes back what [`Self::save`] gave into a device made alike that no driver has
    /// touched. It stays paused until [`Self::resume`].
    ///
    /// # Errors
    /// [`StateError`] when the state does not fit. The device is to be dropped then.
    pub fn restore(&self, state: &[u8]) -> Result<(), StateError> {
        self.lock().restore(state)
    }

    /// How many interrupt messages the hypervisor refused, because the guest programmed
    /// nonsensical ones.
    #[must_use]
    pub fn refused_interrupts(&self) -> u64 {
        self.interrupt.refused()
    }

    fn lock(&self) -> MutexGuard<'_, Transport> {
        self.transport
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for VirtioPciDevice {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut transport = self.lock();
        if transport.decodes_bar() {
            transport.read_bar(offset, data);
        } else {
            data.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut transport = self.lock();
        if transport.decodes_bar() {
            transport.write_bar(offset, data);
        }
    }
}

impl PciFunction for VirtioPciDevice {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.lock().read_config(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        self.lock().write_config(offset, data);
    }
}

#[cfg(test)]
mod tests;
