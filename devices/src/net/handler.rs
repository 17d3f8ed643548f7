//! Moves frames between the queues and the backend, on the `io` thread.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use thiserror::Error;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::backend::NetBackend;
use super::metrics::{NetMetrics, add};
use super::receive::{ReceiveBuffers, Received};
use super::segments::{InvalidBuffer, Segments};
use super::used::{add_used, needs_interrupt};
use super::{HEADER_LEN, MAX_FRAME_LEN};
use crate::GuestMemory;
use crate::event_loop::{EventSet, Handler, Interest, Watch};
use crate::virtio::{Activation, QueueHandle, VirtioInterrupt};

/// Frames moved one way before the other way and other devices of the thread get their turn.
const BATCH: usize = 64;

/// The backend's event token; queues have their indices.
const BACKEND_TOKEN: u32 = u32::MAX;

/// Why frames cannot be moved any more.
#[derive(Debug, Error)]
enum ServeError {
    #[error("network queue {queue} is broken")]
    Queue {
        queue: u16,
        source: virtio_queue::Error,
    },
    #[error("cannot watch the network backend")]
    Watch(#[source] io::Error),
}

/// See the module.
pub struct NetHandler {
    memory: GuestMemory,
    receive: QueueHandle,
    transmit: QueueHandle,
    interrupt: Arc<dyn VirtioInterrupt>,
    backend: Arc<dyn NetBackend>,
    metrics: Arc<NetMetrics>,
    buffers: ReceiveBuffers,
    frame: Segments,
    /// The backend has or may have frames, but the guest has no buffer.
    receive_stalled: bool,
    /// The guest has frames, but the backend does not take them.
    transmit_blocked: bool,
    /// The backend gave an error that does not pass.
    backend_failed: bool,
    broken: bool,
}

impl NetHandler {
    /// Takes over the queues of `activation`: those of the pair whose receive queue is `first`
    /// (5.1.2).
    ///
    /// # Errors
    /// The index of a queue that is missing.
    pub fn new(
        activation: Activation,
        first: u16,
        backend: Arc<dyn NetBackend>,
        metrics: Arc<NetMetrics>,
    ) -> Result<Self, u16> {
        let mut queues = activation.queues.into_iter();
        let mut take = |index| {
            queues
                .next()
                .filter(|queue| queue.index == index)
                .ok_or(index)
        };
        let receive = take(first)?;
        let transmit = take(first + 1)?;
        let merges = activation.driver_features >> VIRTIO_NET_F_MRG_RXBUF & 1 == 1;
        Ok(Self {
            buffers: ReceiveBuffers::new(Arc::clone(&activation.memory), merges),
            frame: Segments::new(Arc::clone(&activation.memory)),
            memory: activation.memory,
            receive,
            transmit,
            interrupt: activation.interrupt,
            backend,
            metrics,
            receive_stalled: false,
            transmit_blocked: false,
            backend_failed: false,
            broken: false,
        })
    }

    fn serve(
        &mut self,
        token: u32,
        events: EventSet,
        interest: &mut Interest<'_>,
    ) -> Result<(), ServeError> {
        let from_backend = token == BACKEND_TOKEN;
        let receives = token == u32::from(self.receive.index)
            || from_backend && events.difference(EventSet::OUT) != EventSet::empty();
        let transmits = token == u32::from(self.transmit.index) && !self.transmit_blocked
            || from_backend && events.contains(EventSet::OUT);
        if receives && !self.backend_failed {
            let queue = self.receive.index;
            self.receive_frames()
                .map_err(|source| ServeError::Queue { queue, source })?;
        }
        if transmits {
            let queue = self.transmit.index;
            self.transmit_frames()
                .map_err(|source| ServeError::Queue { queue, source })?;
        }
        interest
            .modify(BACKEND_TOKEN, self.backend_events())
            .map_err(ServeError::Watch)
    }

    /// What the backend is watched for: nothing that nobody could make use of.
    fn backend_events(&self) -> EventSet {
        let mut events = EventSet::empty();
        events.set(EventSet::IN, !self.receive_stalled && !self.backend_failed);
        events.set(EventSet::OUT, self.transmit_blocked && !self.backend_failed);
        events
    }

    /// Backend to guest.
    fn receive_frames(&mut self) -> Result<(), virtio_queue::Error> {
        let memory = &*self.memory;
        let queue = &mut self.receive.queue;
        let before = queue.next_used();
        self.receive_stalled = false;
        // New buffers matter only when there are none.
        queue.disable_notification(memory)?;
        for _ in 0..BATCH {
            self.buffers.refill(queue, &self.metrics)?;
            if self.buffers.is_empty() {
                if queue.enable_notification(memory)? {
                    continue;
                }
                self.receive_stalled = true;
                add(&self.metrics.receive_stalls, 1);
                break;
            }
            match self.buffers.receive(self.backend.as_fd(), queue) {
                Ok(received) => match received? {
                    Received::Frame(len) => self.metrics.count_received(len),
                    Received::TooLong => add(&self.metrics.receive_drops, 1),
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    // Once for each start of the driver, so no guest fills the log with it.
                    tracing::warn!(%error, "a network card lost its backend");
                    self.backend_failed = true;
                    break;
                }
            }
        }
        if needs_interrupt(queue, memory, before)? {
            self.interrupt.queue(self.receive.index);
        }
        Ok(())
    }

    /// Guest to backend.
    fn transmit_frames(&mut self) -> Result<(), virtio_queue::Error> {
        let memory = &*self.memory;
        let before = self.transmit.queue.next_used();
        self.transmit.queue.disable_notification(memory)?;
        self.transmit_blocked = false;
        let mut more = true;
        for _ in 0..BATCH {
            let queue = &mut self.transmit.queue;
            let Some(chain) = queue.iter(memory)?.next() else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                more = false;
                break;
            };
            let head = chain.head_index();
            match gather(&mut self.frame, chain) {
                Ok(len) => match self.frame.write_to(self.backend.as_fd()) {
                    Ok(_) => self.metrics.count_transmitted(len - HEADER_LEN),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        queue.go_to_previous_position();
                        self.transmit_blocked = true;
                        more = false;
                        break;
                    }
                    Err(_) => add(&self.metrics.transmit_drops, 1),
                },
                Err(InvalidBuffer) => add(&self.metrics.malformed_buffers, 1),
            }
            add_used(queue, memory, &[(head, 0)])?;
        }
        if more {
            // The rest has its turn after other devices. Never full.
            let _ = self.transmit.notify.write(1);
        }
        if needs_interrupt(&self.transmit.queue, memory, before)? {
            self.interrupt.queue(self.transmit.index);
        }
        Ok(())
    }
}

/// Makes `frame` of the descriptors in `chain`, and tells its length with header.
fn gather(
    frame: &mut Segments,
    chain: DescriptorChain<&GuestMemoryMmap<()>>,
) -> Result<usize, InvalidBuffer> {
    frame.truncate(0);
    let mut total = 0;
    for descriptor in chain {
        let len = usize::try_from(descriptor.len()).map_err(|_| InvalidBuffer)?;
        total += len;
        if descriptor.is_write_only() || total > MAX_FRAME_LEN {
            return Err(InvalidBuffer);
        }
        frame.push(descriptor.addr(), len)?;
    }
    if total > HEADER_LEN {
        Ok(total)
    } else {
        Err(InvalidBuffer)
    }
}

impl Handler for NetHandler {
    fn watch(&self) -> Vec<Watch> {
        let notified = |handle: &QueueHandle| Watch {
            fd: handle.notify.as_raw_fd(),
            token: u32::from(handle.index),
            events: EventSet::IN,
        };
        let backend = Watch {
            fd: self.backend.as_fd().as_raw_fd(),
            token: BACKEND_TOKEN,
            events: self.backend_events(),
        };
        vec![notified(&self.receive), notified(&self.transmit), backend]
    }

    fn ready(&mut self, token: u32, events: EventSet, interest: &mut Interest<'_>) {
        for handle in [&self.receive, &self.transmit] {
            if u32::from(handle.index) == token {
                // Empty when the notification was taken before; looking does no harm.
                let _ = handle.notify.read();
            }
        }
        if self.broken {
            return;
        }
        if let Err(error) = self.serve(token, events, interest) {
            self.broken = true;
            // Without a watch there is no more to come from the backend either.
            let _ = interest.modify(BACKEND_TOKEN, EventSet::empty());
            self.interrupt.needs_reset(&error.to_string());
        }
    }

    fn into_queues(mut self: Box<Self>) -> Vec<QueueHandle> {
        self.buffers.give_back(&mut self.receive.queue);
        vec![self.receive, self.transmit]
    }

    fn panicked(&self, cause: &str) {
        self.interrupt.needs_reset(cause);
    }
}
