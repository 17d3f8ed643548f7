//! The queues between a driver's DRIVER_OK and its reset, and the requests on them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::fuse::{Chain, FuseServer};
use crate::GuestMemory;
use crate::virtio::{Activation, QueueHandle, VirtioInterrupt};

/// Queues being served.
pub(super) struct Session {
    memory: GuestMemory,
    queues: Vec<ServedQueue>,
    interrupt: Arc<dyn VirtioInterrupt>,
    server: Arc<FuseServer>,
    stopping: AtomicBool,
}

struct ServedQueue {
    handle: Mutex<QueueHandle>,
    index: u16,
}

/// A request taken from its queue.
pub(super) struct Request<'m> {
    queue: &'m ServedQueue,
    chain: Chain<'m>,
}

impl Session {
    /// Serves what the driver has set up.
    pub fn new(activation: Activation, server: Arc<FuseServer>) -> Self {
        let served = |handle: QueueHandle| ServedQueue {
            index: handle.index,
            handle: Mutex::new(handle),
        };
        Self {
            memory: activation.memory,
            queues: activation.queues.into_iter().map(served).collect(),
            interrupt: activation.interrupt,
            server,
            stopping: AtomicBool::new(false),
        }
    }

    /// Runs `work` on each queue: the pool watches their notifications.
    ///
    /// # Errors
    /// The first of `work`.
    pub fn for_each_queue<E>(
        &self,
        mut work: impl FnMut(&QueueHandle) -> Result<(), E>,
    ) -> Result<(), E> {
        self.queues.iter().try_for_each(|queue| work(&queue.lock()))
    }

    /// Takes no request any more; those taken are finished.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// The queues as they stand, in index order.
    pub fn into_queues(self) -> Vec<QueueHandle> {
        let inner = |queue: ServedQueue| {
            queue
                .handle
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner)
        };
        self.queues.into_iter().map(inner).collect()
    }

    /// The next request of any queue, for a worker that counts itself among the `idle` ones, from
    /// which it is taken if there is a request.
    ///
    /// Whoever takes a request sees to it that an idle worker learns of the next: at once if it
    /// is there already, by the driver's notification otherwise. With no worker idle the driver
    /// need not notify, which saves it an exit.
    pub fn take(&self, idle: &AtomicUsize) -> Option<Request<'_>> {
        self.queues
            .iter()
            .find_map(|queue| self.take_from(queue, idle))
    }

    fn take_from<'m>(&'m self, served: &'m ServedQueue, idle: &AtomicUsize) -> Option<Request<'m>> {
        let mut handle = served.lock();
        while !self.stopping.load(Ordering::Acquire) {
            let memory = self.memory.as_ref();
            let next = handle.queue.iter(memory).map(|mut chains| chains.next());
            match next {
                Ok(Some(chain)) => {
                    let others = idle.fetch_sub(1, Ordering::AcqRel) - 1;
                    let announced = announce_next(&mut handle, memory, others > 0);
                    if let Err(error) = announced {
                        self.fail(&error.to_string());
                    }
                    return Some(Request {
                        queue: served,
                        chain,
                    });
                }
                Ok(None) => match handle.queue.enable_notification(memory) {
                    Ok(false) => return None,
                    Ok(true) => {}
                    Err(error) => self.fail(&error.to_string()),
                },
                Err(error) => self.fail(&error.to_string()),
            }
        }
        None
    }

    /// Serves one request and gives its buffers back.
    pub fn serve(&self, request: Request<'_>) {
        let Request { queue, chain } = request;
        let head = chain.head_index();
        let Ok(written) = catch_unwind(AssertUnwindSafe(|| {
            self.server.answer(self.memory.as_ref(), chain)
        })) else {
            self.fail("a request panicked");
            return;
        };
        let mut handle = queue.lock();
        let memory = self.memory.as_ref();
        let used = handle.queue.add_used(memory, head, written);
        match used.and_then(|()| handle.queue.needs_notification(memory)) {
            Ok(true) => self.interrupt.queue(queue.index),
            Ok(false) => {}
            Err(error) => self.fail(&error.to_string()),
        }
    }

    /// The device cannot go on: its rings are broken or its code is. Said once.
    fn fail(&self, cause: &str) {
        if !self.stopping.swap(true, Ordering::AcqRel) {
            self.interrupt.needs_reset(cause);
        }
    }
}

impl ServedQueue {
    fn lock(&self) -> MutexGuard<'_, QueueHandle> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// After a request was taken: wakes another worker for the one behind it, or has the driver do so
/// when it makes one available.
fn announce_next(
    handle: &mut QueueHandle,
    memory: &GuestMemoryMmap<()>,
    someone_idle: bool,
) -> Result<(), virtio_queue::Error> {
    if !someone_idle {
        return handle.queue.disable_notification(memory);
    }
    if handle.queue.enable_notification(memory)? {
        // Fails only when so many notifications are pending that this one is not needed.
        let _ = handle.notify.write(1);
    }
    Ok(())
}
