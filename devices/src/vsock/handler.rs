//! Moves packets between the queues and the muxer, on the `io` thread.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use thiserror::Error;
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{GuestMemoryMmap, Le32};
use vmm_sys_util::eventfd::EventFd;

use super::host::Shared;
use super::muxer::Muxer;
use super::packet::{HEADER_LEN, Header, WireHeader};
use crate::GuestMemory;
use crate::event_loop::{EventSet, Handler, Interest, Watch};
use crate::virtio::{Activation, QueueHandle, VirtioInterrupt};

/// Packets taken from the guest before other devices of the thread get their turn: four
/// megabytes of Linux's largest.
const TRANSMIT_BATCH: usize = 64;
/// Packets given to the guest likewise; Linux offers buffers of 4 KiB.
const RECEIVE_BATCH: usize = 256;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (virtio 1.2, 5.10.6.7).
const EVENT_TRANSPORT_RESET: u32 = 0;

/// Queues in the order of the specification (5.10.2), as indices and event tokens.
pub(super) const RECEIVE_QUEUE: u16 = 0;
pub(super) const TRANSMIT_QUEUE: u16 = 1;
pub(super) const EVENT_QUEUE: u16 = 2;
const KICK_TOKEN: u32 = 3;

/// A queue that cannot be served any more.
#[derive(Debug, Error)]
#[error("vsock queue {queue} is broken")]
struct QueueError {
    queue: u16,
    source: virtio_queue::Error,
}

/// How far a direction got.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Nothing is left to do.
    Done,
    /// Something is left, and the other direction or the guest has to act first.
    Stalled,
    /// The batch is full.
    More,
}

/// See the module.
pub(super) struct VsockHandler {
    memory: GuestMemory,
    receive: QueueHandle,
    transmit: QueueHandle,
    events: QueueHandle,
    interrupt: Arc<dyn VirtioInterrupt>,
    shared: Arc<Shared>,
    /// The guest still has to hear that its connections are gone.
    transport_reset_due: bool,
    broken: bool,
}

impl VsockHandler {
    /// Takes over the queues of `activation`.
    ///
    /// # Errors
    /// The index of a queue that is missing.
    pub(super) fn new(activation: Activation, shared: Arc<Shared>) -> Result<Self, u16> {
        let mut queues = activation.queues.into_iter();
        let mut take = |index| {
            queues
                .next()
                .filter(|queue| queue.index == index)
                .ok_or(index)
        };
        let receive = take(RECEIVE_QUEUE)?;
        let transmit = take(TRANSMIT_QUEUE)?;
        let events = take(EVENT_QUEUE)?;
        // A driver whose rings have moved on has connections that we know nothing of: it was
        // paused or restored.
        let transport_reset_due = [&receive, &transmit, &events]
            .iter()
            .any(|handle| handle.queue.next_avail() != 0);
        Ok(Self {
            memory: activation.memory,
            receive,
            transmit,
            events,
            interrupt: activation.interrupt,
            shared,
            transport_reset_due,
            broken: false,
        })
    }

    /// Moves what can be moved.
    fn exchange(&mut self) -> Result<(), QueueError> {
        let before = self.used_positions();
        self.send_transport_reset()?;
        let shared = Arc::clone(&self.shared);
        let more = shared.as_device(|muxer| {
            let progress = self.exchange_with(muxer);
            let idle = matches!(progress, Ok((_, Progress::Done)));
            let more = progress.map(|(transmitted, received)| {
                transmitted == Progress::More
                    || received == Progress::More
                    || transmitted == Progress::Stalled && !muxer.is_congested()
            });
            (more, idle)
        })?;
        self.interrupt_if_used(before)?;
        if more {
            // Never full, see `Shared::as_host`.
            let _ = self.shared.kick.write(1);
        }
        Ok(())
    }

    fn exchange_with(&mut self, muxer: &mut Muxer) -> Result<(Progress, Progress), QueueError> {
        let transmitted = self.take_packets(muxer).map_err(|source| QueueError {
            queue: TRANSMIT_QUEUE,
            source,
        })?;
        let received = self.give_packets(muxer).map_err(|source| QueueError {
            queue: RECEIVE_QUEUE,
            source,
        })?;
        Ok((transmitted, received))
    }

    /// Guest to host.
    fn take_packets(&mut self, muxer: &mut Muxer) -> Result<Progress, virtio_queue::Error> {
        let memory = &*self.memory;
        let queue = &mut self.transmit.queue;
        queue.disable_notification(memory)?;
        for _ in 0..TRANSMIT_BATCH {
            if muxer.is_congested() {
                return Ok(Progress::Stalled);
            }
            let Some(chain) = queue.iter(memory)?.next() else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                return Ok(Progress::Done);
            };
            let head = chain.head_index();
            take_packet(memory, chain, muxer);
            queue.add_used(memory, head, 0)?;
        }
        Ok(Progress::More)
    }

    /// Host to guest.
    fn give_packets(&mut self, muxer: &mut Muxer) -> Result<Progress, virtio_queue::Error> {
        let memory = &*self.memory;
        let queue = &mut self.receive.queue;
        // New buffers matter only when there are none for a packet.
        queue.disable_notification(memory)?;
        for _ in 0..RECEIVE_BATCH {
            if !muxer.has_packets() {
                return Ok(Progress::Done);
            }
            let Some(chain) = queue.iter(memory)?.next() else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                return Ok(Progress::Stalled);
            };
            let head = chain.head_index();
            let Some(len) = give_packet(memory, chain, muxer) else {
                queue.go_to_previous_position();
                return Ok(Progress::Done);
            };
            queue.add_used(memory, head, len)?;
        }
        Ok(Progress::More)
    }

    /// Tells the driver that its connections are gone, as soon as it offers a buffer.
    fn send_transport_reset(&mut self) -> Result<(), QueueError> {
        let broken = |source| QueueError {
            queue: EVENT_QUEUE,
            source,
        };
        let memory = &*self.memory;
        let queue = &mut self.events.queue;
        while self.transport_reset_due {
            let Some(chain) = queue.iter(memory).map_err(broken)?.next() else {
                if queue.enable_notification(memory).map_err(broken)? {
                    continue;
                }
                return Ok(());
            };
            let head = chain.head_index();
            let event = Le32::from(EVENT_TRANSPORT_RESET);
            let written = chain
                .writer(memory)
                .is_ok_and(|mut buffer| buffer.write_obj(event).is_ok());
            let len = if written { 4 } else { 0 };
            queue.add_used(memory, head, len).map_err(broken)?;
            self.transport_reset_due = !written;
        }
        Ok(())
    }

    fn used_positions(&self) -> [u16; 3] {
        [&self.receive, &self.transmit, &self.events].map(|handle| handle.queue.next_used())
    }

    /// Interrupts for the queues that have moved on from where they were `before`.
    fn interrupt_if_used(&mut self, before: [u16; 3]) -> Result<(), QueueError> {
        let handles = [&mut self.receive, &mut self.transmit, &mut self.events];
        for (handle, before) in handles.into_iter().zip(before) {
            let broken = |source| QueueError {
                queue: handle.index,
                source,
            };
            if handle.queue.next_used() != before
                && handle
                    .queue
                    .needs_notification(&*self.memory)
                    .map_err(broken)?
            {
                self.interrupt.queue(handle.index);
            }
        }
        Ok(())
    }

    /// The driver cannot be served any more: so that nobody waits for it, every stream ends.
    fn give_up(&self, cause: &str) {
        self.shared.as_device(|muxer| (muxer.reset_all(), false));
        self.interrupt.needs_reset(cause);
    }
}

/// Hands the packet in `chain` to the muxer; one that makes no sense is dropped.
fn take_packet(
    memory: &GuestMemoryMmap<()>,
    chain: DescriptorChain<&GuestMemoryMmap<()>>,
    muxer: &mut Muxer,
) {
    let packet = chain.reader(memory).ok().and_then(|mut reader| {
        let header: WireHeader = reader.read_obj().ok()?;
        Some((Header::from(header), reader))
    });
    match packet {
        Some((header, mut data)) => {
            let available = data.available_bytes();
            muxer.receive(&header, available, &mut data);
        }
        None => muxer.counters.malformed += 1,
    }
}

/// Fills `chain` with the muxer's next packet and tells how many bytes were written, none to
/// a buffer that is no use. `None` when there is no packet.
fn give_packet(
    memory: &GuestMemoryMmap<()>,
    chain: DescriptorChain<&GuestMemoryMmap<()>>,
    muxer: &mut Muxer,
) -> Option<u32> {
    let buffer = chain.writer(memory).ok().and_then(|mut header| {
        let data = header.split_at(HEADER_LEN).ok()?;
        (data.available_bytes() > 0).then_some((header, data))
    });
    let Some((mut header_buffer, mut data)) = buffer else {
        muxer.counters.malformed += 1;
        return Some(0);
    };
    let room = data.available_bytes();
    // Writing fails only beyond the buffer's end, which `room` excludes.
    let header = muxer.next_packet(room, &mut data).ok()??;
    header_buffer.write_obj(WireHeader::from(header)).ok()?;
    u32::try_from(HEADER_LEN).ok()?.checked_add(header.len)
}

impl Handler for VsockHandler {
    fn watch(&self) -> Vec<Watch> {
        let watch = |fd: &EventFd, token| Watch {
            fd: fd.as_raw_fd(),
            token,
            events: EventSet::IN,
        };
        let mut watches: Vec<_> = [&self.receive, &self.transmit, &self.events]
            .map(|handle| watch(&handle.notify, u32::from(handle.index)))
            .into();
        watches.push(watch(&self.shared.kick, KICK_TOKEN));
        watches
    }

    fn ready(&mut self, token: u32, _events: EventSet, _interest: &mut Interest<'_>) {
        let fd = match u16::try_from(token) {
            Ok(RECEIVE_QUEUE) => &self.receive.notify,
            Ok(TRANSMIT_QUEUE) => &self.transmit.notify,
            Ok(EVENT_QUEUE) => &self.events.notify,
            _ => &self.shared.kick,
        };
        // Empty when somebody else took the notification; then there is no harm in looking.
        let _ = fd.read();
        if self.broken {
            return;
        }
        if let Err(error) = self.exchange() {
            self.broken = true;
            self.give_up(&error.to_string());
        }
    }

    fn into_queues(self: Box<Self>) -> Vec<QueueHandle> {
        vec![self.receive, self.transmit, self.events]
    }

    fn panicked(&self, cause: &str) {
        self.give_up(cause);
    }
}
