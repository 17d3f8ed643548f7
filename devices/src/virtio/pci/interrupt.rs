//! The way from a device to its driver: vectors, interrupt status and `DEVICE_NEEDS_RESET`.
//!
//! Device threads come here without the transport's lock, which a vCPU holds while it waits
//! for those very threads to stop.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::routes::QueueRoutes;
use crate::interrupt::MsiSink;
use crate::pci::msix::Msix;
use crate::virtio::{DeviceType, VirtioInterrupt};

/// The vector number for "no interrupt" (virtio 1.2, 4.1.4.3).
pub const NO_VECTOR: u16 = 0xffff;

const ISR_QUEUE: u8 = 1 << 0;
const ISR_CONFIG: u8 = 1 << 1;

/// Told why a device failed.
pub type OnFailure = Box<dyn Fn(&str) + Send + Sync>;

/// A driver's choice of vectors and what was signalled.
pub struct PciInterrupt {
    device_type: DeviceType,
    msix: Mutex<Msix>,
    routes: Mutex<QueueRoutes>,
    isr: AtomicU8,
    generation: AtomicU8,
    needs_reset: AtomicBool,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    reported: AtomicBool,
    on_failure: OnceLock<OnFailure>,
}

impl PciInterrupt {
    /// Vectors for `queues` queues and for configuration changes, none chosen; `routes` lead
    /// where the queues' vectors do.
    pub fn new(
        device_type: DeviceType,
        queues: u16,
        routes: QueueRoutes,
        sink: Arc<dyn MsiSink>,
    ) -> Self {
        Self {
            device_type,
            routes: Mutex::new(routes),
            msix: Mutex::new(Msix::new(queues + 1, sink)),
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            reported: AtomicBool::new(false),
            on_failure: OnceLock::new(),
        }
    }

    /// The function's MSI-X table.
    pub fn msix(&self) -> MutexGuard<'_, Msix> {
        self.msix.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the function's MSI-X table.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        self.msix().write_table(offset, data);
        self.reroute();
    }

    /// Takes MSI-X's control register and whether the function may send at all.
    pub fn set_control(&self, control: u16, may_send: bool) {
        self.msix().set_control(control, may_send);
        self.reroute();
    }

    /// How many messages the hypervisor refused so far.
    pub fn refused(&self) -> u64 {
        self.msix().refused() + self.routes().refused()
    }

    /// The interrupt status, which reading clears.
    pub fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// The interrupt status as it stands.
    pub fn isr(&self) -> u8 {
        self.isr.load(Ordering::Acquire)
    }

    /// Counts changes of the device's configuration.
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether the device gave up.
    pub fn is_broken(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// The vector for configuration changes.
    pub fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    /// Chooses the vector for configuration changes; one that does not exist means none.
    pub fn set_config_vector(&self, vector: u16) {
        self.config_vector
            .store(self.existing(vector), Ordering::Release);
    }

    /// The vector of a queue.
    pub fn queue_vector(&self, queue: u16) -> u16 {
        let vector = self.queue_vectors.get(usize::from(queue));
        vector.map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    /// Chooses the vector of a queue; one that does not exist means none.
    pub fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(queue)) {
            slot.store(self.existing(vector), Ordering::Release);
            self.reroute();
        }
    }

    /// Sets who is told of the first failure; only the first call counts.
    pub fn set_on_failure(&self, on_failure: OnFailure) {
        // An error would say that somebody is told already.
        let _ = self.on_failure.set(on_failure);
    }

    /// A driver's reset. The table itself belongs to the PCI function and stays.
    pub fn reset(&self) {
        self.isr.store(0, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.msix().clear_pending();
        self.reroute();
    }

    /// The machine's reset: the table is as it came up, and a failure is news again.
    pub fn power_on(&self) {
        self.reset();
        self.generation.store(0, Ordering::Release);
        self.reported.store(false, Ordering::Release);
        self.msix().reset();
        self.reroute();
    }

    /// Takes back saved flags.
    pub fn restore(&self, isr: u8, generation: u8, broken: bool) {
        self.isr
            .store(isr & (ISR_QUEUE | ISR_CONFIG), Ordering::Release);
        self.generation.store(generation, Ordering::Release);
        self.needs_reset.store(broken, Ordering::Release);
    }

    fn existing(&self, vector: u16) -> u16 {
        if self.msix().has_vector(vector) {
            vector
        } else {
            NO_VECTOR
        }
    }

    fn routes(&self) -> MutexGuard<'_, QueueRoutes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After each change of vectors, table or masks. Only a transport makes them, which is
    /// locked meanwhile.
    fn reroute(&self) {
        let msix = self.msix();
        self.routes()
            .follow(|queue| msix.message(self.queue_vector(queue)));
    }

    fn signal(&self, isr: u8, vector: u16) {
        self.isr.fetch_or(isr, Ordering::AcqRel);
        if vector != NO_VECTOR {
            self.msix().signal(vector);
        }
    }
}

impl VirtioInterrupt for PciInterrupt {
    fn queue(&self, index: u16) {
        self.signal(ISR_QUEUE, self.queue_vector(index));
    }

    fn queue_event(&self, index: u16) -> Option<Arc<EventFd>> {
        self.routes().event(index)
    }

    fn config(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.signal(ISR_CONFIG, self.config_vector());
    }

    fn needs_reset(&self, cause: &str) {
        self.needs_reset.store(true, Ordering::Release);
        // A guest can break its rings as often as it likes: the first time tells enough.
        if !self.reported.swap(true, Ordering::AcqRel) {
            tracing::warn!(device = ?self.device_type, cause, "the device needs a reset");
            if let Some(on_failure) = self.on_failure.get() {
                on_failure(cause);
            }
        }
        self.signal(ISR_CONFIG, self.config_vector());
    }
}
