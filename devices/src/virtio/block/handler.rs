//! A disk's queues on the disk's own thread.

use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use virtio_queue::{QueueOwnedT as _, QueueT as _};

use super::backend::{Completion, DiskBackend, DiskOperation};
use super::failures::FailureLog;
use super::limit::Limiter;
use super::request::{Action, Disk, ID_LEN, Request, Status};
use super::{BlockMetrics, MAX_BUFFERS};
use crate::GuestMemory;
use crate::event_loop::{EventSet, Handler, Interest, Watch};
use crate::virtio::chain::{Buffers, Parts};
use crate::virtio::device::{Activation, QueueHandle, VirtioInterrupt};

/// The token of the backend's event; queues have their positions.
const COMPLETIONS: u32 = u32::MAX;
/// The token of the limiter's timer.
const RATE: u32 = u32::MAX - 1;

/// What of a disk outlives its handlers, and is used by the handler while there is one.
#[derive(Clone)]
pub struct DiskParts {
    /// Its data.
    pub backend: Arc<Mutex<Box<dyn DiskBackend>>>,
    /// Its length, and whether it is written to.
    pub disk: Disk,
    /// Its serial number.
    pub id: [u8; ID_LEN],
    /// Its rates, if they are limited.
    pub limiter: Option<Arc<Mutex<Limiter>>>,
    /// What it has done.
    pub metrics: Arc<BlockMetrics>,
    /// What it has not.
    pub failures: Arc<FailureLog>,
}

/// How often one round looks again for what came meanwhile; after that the thread listens to
/// its owner.
const LOOKS: usize = 8;

/// Requests taken from a queue at once; the other queues have their turn then.
const BUDGET: usize = 256;

/// A queue, and whether its driver has to hear of used buffers.
struct DiskQueue {
    handle: QueueHandle,
    has_used: bool,
}

/// A request whose operation is in flight.
struct Flight {
    queue: usize,
    head: u16,
    status: Buffers,
    data_len: u32,
}

/// The queues, from activation to reset.
pub struct BlockHandler {
    memory: GuestMemory,
    queues: Vec<DiskQueue>,
    interrupt: Arc<dyn VirtioInterrupt>,
    parts: DiskParts,
    flights: Vec<Option<Flight>>,
    /// Positions without a flight.
    free: Vec<usize>,
}

impl BlockHandler {
    /// Takes over the activated queues of the disk that consists of `parts`.
    pub fn new(activation: Activation, parts: DiskParts) -> Self {
        let Activation {
            memory,
            queues,
            interrupt,
            ..
        } = activation;
        let slots = lock(&parts.backend).max_in_flight();
        let queue = |handle| DiskQueue {
            handle,
            has_used: false,
        };
        Self {
            memory,
            queues: queues.into_iter().map(queue).collect(),
            interrupt,
            parts,
            flights: (0..slots).map(|_| None).collect(),
            free: (0..slots).rev().collect(),
        }
    }

    /// Finishes what has completed and takes on as much as may be in flight.
    fn round(&mut self) -> Result<(), virtio_queue::Error> {
        let backend = Arc::clone(&self.parts.backend);
        let mut backend = lock(&backend);
        for _ in 0..LOOKS {
            self.reap(backend.as_mut())?;
            let mut taken = 0;
            for position in 0..self.queues.len() {
                taken += self.take_requests(position, backend.as_mut())?;
            }
            backend.submit();
            if taken == 0 {
                break;
            }
        }
        self.interrupt_queues()
    }

    /// Finishes what has completed, all of it even when a ring turns out to be broken:
    /// [`Self::drain`] counts on every completion.
    fn reap(&mut self, backend: &mut dyn DiskBackend) -> Result<(), virtio_queue::Error> {
        let mut finished = Vec::new();
        backend.take_completions(&mut finished);
        let mut outcome = Ok(());
        for Completion { tag, result } in finished {
            if let Err(error) = &result {
                self.parts.failures.note(error);
            }
            if let Some(flight) = self.flights.get_mut(tag).and_then(Option::take) {
                self.free.push(tag);
                outcome = outcome.and(self.finish(&flight, status_of(&result)));
            }
        }
        outcome
    }

    /// Begins the requests of a queue until it is empty or nothing more may be in flight,
    /// and returns how many. In the latter case a completion leads to the next round.
    fn take_requests(
        &mut self,
        position: usize,
        backend: &mut dyn DiskBackend,
    ) -> Result<usize, virtio_queue::Error> {
        let memory = Arc::clone(&self.memory);
        let mut taken = 0;
        loop {
            while taken < BUDGET && !self.free.is_empty() {
                if !self.may_begin() {
                    return Ok(taken);
                }
                let Some(queue) = self.queues.get_mut(position) else {
                    return Ok(taken);
                };
                let queue = &mut queue.handle.queue;
                queue.disable_notification(memory.as_ref())?;
                let Some(chain) = queue.iter(memory.as_ref())?.next() else {
                    break;
                };
                taken += 1;
                let head = chain.head_index();
                let parts = Parts::of(chain, MAX_BUFFERS);
                match parts.and_then(|parts| Request::parse(parts, self.parts.disk, &memory)) {
                    Ok(request) => self.begin(position, head, request, backend)?,
                    // There is no place for an answer: the driver sees that nothing came.
                    Err(_) => {
                        self.parts.metrics.malformed.fetch_add(1, Ordering::Relaxed);
                        self.add_used(position, head, 0)?;
                    }
                }
            }
            let Some(queue) = self.queues.get_mut(position) else {
                return Ok(taken);
            };
            let full = self.free.is_empty();
            if taken >= BUDGET {
                // Fails only when the counter is full: then it is readable already.
                let _ = queue.handle.notify.write(1);
                return Ok(taken);
            }
            if full || !queue.handle.queue.enable_notification(memory.as_ref())? {
                return Ok(taken);
            }
        }
    }

    /// Whether the disk's rates allow another operation now; otherwise the timer leads to the
    /// next round.
    fn may_begin(&self) -> bool {
        let limiter = self.parts.limiter.as_deref();
        limiter.is_none_or(|limiter| lock(limiter).allows(Instant::now()))
    }

    fn count(&self, operation: &DiskOperation) {
        if let Some(limiter) = &self.parts.limiter {
            lock(limiter).count(operation, Instant::now());
        }
    }

    fn begin(
        &mut self,
        queue: usize,
        head: u16,
        request: Request,
        backend: &mut dyn DiskBackend,
    ) -> Result<(), virtio_queue::Error> {
        let Request {
            action,
            status,
            data_len,
        } = request;
        let flight = Flight {
            queue,
            head,
            status,
            data_len,
        };
        match action {
            Action::Start(operation) => {
                self.count(&operation);
                if let Some(slot) = self.free.pop()
                    && let Some(entry) = self.flights.get_mut(slot)
                {
                    *entry = Some(flight);
                    backend.start(slot, operation);
                }
                Ok(())
            }
            Action::Identify(buffers) => {
                let written = buffers.write(&self.memory, &self.parts.id);
                self.finish(
                    &flight,
                    if written.is_ok() {
                        Status::Ok
                    } else {
                        Status::IoError
                    },
                )
            }
            Action::Answer(status) => self.finish(&flight, status),
        }
    }

    fn finish(&mut self, flight: &Flight, status: Status) -> Result<(), virtio_queue::Error> {
        let data_len = if status == Status::Ok {
            flight.data_len
        } else {
            0
        };
        if status != Status::Ok {
            self.parts.metrics.failed.fetch_add(1, Ordering::Relaxed);
        }
        self.parts.metrics.requests.fetch_add(1, Ordering::Relaxed);
        let len = match flight.status.write(&self.memory, &[status as u8]) {
            Ok(()) => data_len.saturating_add(1),
            Err(_) => 0,
        };
        self.add_used(flight.queue, flight.head, len)
    }

    fn add_used(&mut self, queue: usize, head: u16, len: u32) -> Result<(), virtio_queue::Error> {
        if let Some(queue) = self.queues.get_mut(queue) {
            queue
                .handle
                .queue
                .add_used(self.memory.as_ref(), head, len)?;
            queue.has_used = true;
        }
        Ok(())
    }

    fn interrupt_queues(&mut self) -> Result<(), virtio_queue::Error> {
        for DiskQueue { handle, has_used } in &mut self.queues {
            if std::mem::take(has_used) && handle.queue.needs_notification(self.memory.as_ref())? {
                self.interrupt.queue(handle.index);
            }
        }
        Ok(())
    }

    /// Waits for all that is in flight and finishes it.
    fn drain(&mut self) -> Result<(), DrainError> {
        let backend = Arc::clone(&self.parts.backend);
        let mut backend = lock(&backend);
        while self.flights.iter().any(Option::is_some) {
            backend.wait().map_err(DrainError::Wait)?;
            self.reap(backend.as_mut()).map_err(DrainError::Queue)?;
        }
        self.interrupt_queues().map_err(DrainError::Queue)
    }
}

#[derive(Debug, thiserror::Error)]
enum DrainError {
    #[error("cannot wait for the disk")]
    Wait(#[source] io::Error),
    #[error("a ring is broken")]
    Queue(#[source] virtio_queue::Error),
}

impl Handler for BlockHandler {
    fn watch(&self) -> Vec<Watch> {
        let events = EventSet::IN;
        let queues = self.queues.iter().zip(0..);
        let queues = queues.map(|(queue, token)| Watch {
            fd: queue.handle.notify.as_raw_fd(),
            token,
            events,
        });
        let completions = Watch {
            fd: lock(&self.parts.backend).event(),
            token: COMPLETIONS,
            events,
        };
        let rate = self.parts.limiter.as_ref().map(|limiter| Watch {
            fd: lock(limiter).event(),
            token: RATE,
            events,
        });
        queues.chain([completions]).chain(rate).collect()
    }

    fn ready(&mut self, token: u32, _events: EventSet, interest: &mut Interest<'_>) {
        let queue = usize::try_from(token)
            .ok()
            .and_then(|token| self.queues.get(token));
        if let Some(queue) = queue {
            // Only clears the counter.
            let _ = queue.handle.notify.read();
        } else if let (RATE, Some(limiter)) = (token, &self.parts.limiter) {
            lock(limiter).clear();
        }
        if let Err(error) = self.round() {
            self.interrupt.needs_reset(&error.to_string());
            // Nothing more is served; there is no use in listening.
            for token in (0..).take(self.queues.len()).chain([COMPLETIONS, RATE]) {
                let _ = interest.modify(token, EventSet::empty());
            }
        }
    }

    fn stop(&mut self) {
        if let Err(error) = self.drain() {
            self.interrupt.needs_reset(&error.to_string());
        }
    }

    fn into_queues(mut self: Box<Self>) -> Vec<QueueHandle> {
        let queues = std::mem::take(&mut self.queues);
        queues.into_iter().map(|queue| queue.handle).collect()
    }

    fn panicked(&self, cause: &str) {
        self.interrupt.needs_reset(cause);
    }
}

impl Drop for BlockHandler {
    /// After a panic or on broken rings operations may still be in flight: nothing of this
    /// driver is when the next one comes.
    fn drop(&mut self) {
        let mut backend = lock(&self.parts.backend);
        let mut left = self.flights.iter().flatten().count();
        let mut finished = Vec::new();
        while left > 0 && backend.wait().is_ok() {
            backend.take_completions(&mut finished);
            left = left.saturating_sub(finished.len());
            finished.clear();
        }
    }
}

fn lock<T>(part: &Mutex<T>) -> MutexGuard<'_, T> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

fn status_of(result: &io::Result<()>) -> Status {
    match result {
        Ok(()) => Status::Ok,
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Status::Unsupported,
        Err(_) => Status::IoError,
    }
}
