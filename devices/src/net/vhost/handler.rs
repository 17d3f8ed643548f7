//! A card's queues while the kernel serves them.

use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use virtio_queue::QueueT as _;
use vmm_sys_util::eventfd::EventFd;

use super::super::backend::NetBackend;
use super::VhostNet;
use crate::GuestMemory;
use crate::event_loop::{EventSet, Handler, Interest, Watch};
use crate::virtio::{Activation, QueueHandle, VirtioInterrupt};

const ERROR_TOKEN: u32 = 0;

/// Holds what the kernel works with, and waits for it to find the rings broken. Stops it when it
/// is dropped.
pub(in super::super) struct VhostHandler {
    vhost: Arc<VhostNet>,
    queues: Vec<QueueHandle>,
    memory: GuestMemory,
    backend: Arc<dyn NetBackend>,
    interrupt: Arc<dyn VirtioInterrupt>,
    /// What the kernel writes for an interrupt, kept as long as it may.
    _calls: Vec<Arc<EventFd>>,
}

impl VhostHandler {
    /// Hands the queues of `activation` to the kernel; `calls` has an event file for each that
    /// interrupts the guest.
    ///
    /// # Errors
    /// What the kernel says. It has no queue then.
    pub(in super::super) fn start(
        activation: Activation,
        calls: Vec<Arc<EventFd>>,
        vhost: Arc<VhostNet>,
        backend: Arc<dyn NetBackend>,
    ) -> io::Result<Self> {
        // From here on dropping it takes the queues back.
        let handler = Self {
            vhost,
            queues: activation.queues,
            memory: activation.memory,
            backend,
            interrupt: activation.interrupt,
            _calls: calls,
        };
        let Self { vhost, memory, .. } = &handler;
        vhost.prepare(memory, activation.driver_features)?;
        for (queue, call) in handler.queues.iter().zip(&handler._calls) {
            vhost.start(queue, call, memory, handler.backend.as_fd())?;
        }
        Ok(handler)
    }

    /// Takes the queues back as they stand.
    fn stop(&mut self) {
        for handle in &mut self.queues {
            match self.vhost.stop(handle.index) {
                // The kernel uses buffers in the order in which it takes them, and stopped it
                // has used all: the rings have come equally far.
                Ok(next) => {
                    handle.queue.set_next_avail(next);
                    handle.queue.set_next_used(next);
                }
                Err(error) => {
                    let cause = format!("the kernel keeps network queue {}: {error}", handle.index);
                    self.interrupt.needs_reset(&cause);
                }
            }
        }
    }
}

impl Handler for VhostHandler {
    fn watch(&self) -> Vec<Watch> {
        vec![Watch {
            fd: self.vhost.error.as_raw_fd(),
            token: ERROR_TOKEN,
            events: EventSet::IN,
        }]
    }

    fn ready(&mut self, _: u32, _: EventSet, _: &mut Interest<'_>) {
        // Cleared, so that it does not wake the loop again.
        let _ = self.vhost.error.read();
        self.interrupt
            .needs_reset("the kernel finds a network queue broken");
    }

    fn into_queues(mut self: Box<Self>) -> Vec<QueueHandle> {
        self.stop();
        std::mem::take(&mut self.queues)
    }

    fn panicked(&self, cause: &str) {
        self.interrupt.needs_reset(cause);
    }
}

impl Drop for VhostHandler {
    fn drop(&mut self) {
        self.stop();
    }
}
