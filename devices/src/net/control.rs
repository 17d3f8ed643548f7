//! The control queue (virtio 1.2, 5.1.6.5) of a card with several pairs of queues: its driver says
//! how many of them it uses.

use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use vm_memory::GuestMemoryMmap;

use super::backend::NetBackend;
use crate::GuestMemory;
use crate::event_loop::{EventSet, Handler, Interest, Watch};
use crate::virtio::chain::{Buffers, Parts};
use crate::virtio::serve::{Served, serve};
use crate::virtio::{QueueHandle, VirtioInterrupt};

/// `VIRTIO_NET_CTRL_MQ` and its `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`.
const SET_PAIRS: [u8; 2] = [4, 0];
const OK: u8 = 0;
const ERROR: u8 = 1;
/// Most buffers of a command; Linux makes three of it.
const MAX_BUFFERS: usize = 8;

/// The queues that a card has, and how many of them are in use.
pub(super) struct Pairs {
    backends: Vec<Arc<dyn NetBackend>>,
    in_use: AtomicU16,
}

impl Pairs {
    pub(super) fn new(backends: Vec<Arc<dyn NetBackend>>) -> Self {
        Self {
            backends,
            in_use: AtomicU16::new(1),
        }
    }

    pub(super) fn count(&self) -> u16 {
        u16::try_from(self.backends.len()).unwrap_or(u16::MAX)
    }

    pub(super) fn in_use(&self) -> u16 {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Uses the first `count` pairs from now on.
    ///
    /// # Errors
    /// What the host says; `InvalidInput` when there are not as many.
    pub(super) fn set_in_use(&self, count: u16) -> std::io::Result<()> {
        if !(1..=self.count()).contains(&count) {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        for (number, backend) in (0..).zip(&self.backends) {
            backend.set_in_use(number < count)?;
        }
        self.in_use.store(count, Ordering::Relaxed);
        Ok(())
    }
}

/// Serves the queue, on the `io` thread.
pub(super) struct ControlHandler {
    pub(super) memory: GuestMemory,
    pub(super) queue: QueueHandle,
    pub(super) interrupt: Arc<dyn VirtioInterrupt>,
    pub(super) pairs: Arc<Pairs>,
    pub(super) broken: bool,
}

/// What a command is answered.
fn obey(pairs: &Pairs, memory: &GuestMemoryMmap<()>, command: &Buffers) -> u8 {
    let mut bytes = [0; 4];
    if command.read(memory, &mut bytes).is_err() {
        return ERROR;
    }
    let [class, kind, low, high] = bytes;
    if [class, kind] != SET_PAIRS {
        return ERROR;
    }
    match pairs.set_in_use(u16::from_le_bytes([low, high])) {
        Ok(()) => OK,
        Err(error) => {
            tracing::debug!(%error, "a network card's queues stay as they are");
            ERROR
        }
    }
}

impl Handler for ControlHandler {
    fn watch(&self) -> Vec<Watch> {
        vec![Watch {
            fd: self.queue.notify.as_raw_fd(),
            token: u32::from(self.queue.index),
            events: EventSet::IN,
        }]
    }

    fn ready(&mut self, _: u32, _: EventSet, _: &mut Interest<'_>) {
        // Empty when the notification was taken before; looking does no harm.
        let _ = self.queue.notify.read();
        if self.broken {
            return;
        }
        let (memory, pairs) = (&*self.memory, &*self.pairs);
        let served = serve(&mut self.queue, memory, self.interrupt.as_ref(), |chain| {
            // A command without room for its answer has none.
            let Ok(parts) = Parts::of(chain, MAX_BUFFERS) else {
                return Served::Used(0);
            };
            let answer = obey(pairs, memory, &parts.readable);
            match parts.writable.write(memory, &[answer]) {
                Ok(()) => Served::Used(1),
                Err(_) => Served::Used(0),
            }
        });
        if let Err(error) = served {
            self.broken = true;
            let cause = format!("network queue {} is broken: {error}", self.queue.index);
            self.interrupt.needs_reset(&cause);
        }
    }

    fn into_queues(self: Box<Self>) -> Vec<QueueHandle> {
        vec![self.queue]
    }

    fn panicked(&self, cause: &str) {
        self.interrupt.needs_reset(cause);
    }
}
