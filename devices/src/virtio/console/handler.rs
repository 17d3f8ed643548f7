//! Moves bytes and messages between the queues and their ends, on the `io` thread.

use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::F_MULTIPORT;
use super::control::{self, FromDriver};
use super::shared::Shared;
use crate::GuestMemory;
use crate::event_loop::{EventSet, Handler, Interest, Watch};
use crate::virtio::chain::{Buffers, Parts};
use crate::virtio::device::{Activation, QueueHandle, VirtioInterrupt};
use crate::virtio::serve::{Served, serve};

/// Queues in the order of the specification (5.3.2): of the console, of messages, of each port.
const CONSOLE_RECEIVE: u16 = 0;
const CONSOLE_TRANSMIT: u16 = 1;
const CONTROL_RECEIVE: u16 = 2;
const CONTROL_TRANSMIT: u16 = 3;
const FIRST_PORT: u16 = 4;
const KICK: u32 = u32::MAX;

/// Most buffers of one request; Linux splices 16 pages at once.
const MAX_BUFFERS: usize = 32;
/// Bytes moved at once. More of a request follow in the same round.
const PIECE_LEN: usize = 4096;
/// Most bytes of one request that are looked at: a hostile guest must not keep the thread.
const MAX_REQUEST_LEN: u64 = 1 << 20;

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// To the guest; the index as in [`Shared::taken`].
    Receive(usize),
    /// From the guest.
    Transmit(usize),
    ControlReceive,
    ControlTransmit,
}

impl Role {
    fn of(queue: u16) -> Self {
        match queue {
            CONSOLE_RECEIVE => Self::Receive(0),
            CONSOLE_TRANSMIT => Self::Transmit(0),
            CONTROL_RECEIVE => Self::ControlReceive,
            CONTROL_TRANSMIT => Self::ControlTransmit,
            port => {
                let index = usize::from((port - FIRST_PORT) / 2) + 1;
                if port % 2 == 0 {
                    Self::Receive(index)
                } else {
                    Self::Transmit(index)
                }
            }
        }
    }
}

/// See the module.
pub(super) struct ConsoleHandler {
    memory: GuestMemory,
    queues: Vec<QueueHandle>,
    interrupt: Arc<dyn VirtioInterrupt>,
    shared: Arc<Shared>,
    /// The driver knows of other ports than the console.
    multiport: bool,
    broken: bool,
}

impl ConsoleHandler {
    /// Takes over the queues of `activation`.
    ///
    /// # Errors
    /// The index of a queue that is missing.
    pub(super) fn new(activation: Activation, shared: Arc<Shared>) -> Result<Self, u16> {
        let Activation {
            memory,
            driver_features,
            queues,
            interrupt,
        } = activation;
        for needed in [CONSOLE_RECEIVE, CONSOLE_TRANSMIT] {
            if !queues.iter().any(|queue| queue.index == needed) {
                return Err(needed);
            }
        }
        shared.set_interrupt(Some(Arc::clone(&interrupt)));
        Ok(Self {
            memory,
            queues,
            interrupt,
            shared,
            multiport: driver_features >> F_MULTIPORT & 1 == 1,
            broken: false,
        })
    }

    /// Moves what can be moved. Messages first: they open ports.
    fn exchange(&mut self) -> Result<(), virtio_queue::Error> {
        let order = |queue: &QueueHandle| match Role::of(queue.index) {
            Role::ControlTransmit => 0,
            Role::ControlReceive => 1,
            Role::Transmit(_) => 2,
            Role::Receive(_) => 3,
        };
        let mut queues: Vec<&mut QueueHandle> = self.queues.iter_mut().collect();
        queues.sort_by_key(|queue| order(queue));
        let (memory, shared) = (&*self.memory, &*self.shared);
        for queue in queues {
            let role = Role::of(queue.index);
            if !self.multiport && !matches!(role, Role::Receive(0) | Role::Transmit(0)) {
                continue;
            }
            serve(queue, memory, self.interrupt.as_ref(), |chain| {
                // A malformed request is given back as it is.
                let Ok(parts) = Parts::of(chain, MAX_BUFFERS) else {
                    return Served::Used(0);
                };
                match role {
                    Role::ControlTransmit => take_message(shared, memory, &parts.readable),
                    Role::ControlReceive => give_message(shared, memory, &parts.writable),
                    Role::Transmit(index) => take_output(shared, memory, index, parts.readable),
                    Role::Receive(index) => give_input(shared, memory, index, parts.writable),
                }
            })?;
        }
        Ok(())
    }

    fn give_up(&self, cause: &str) {
        self.shared.reset();
        self.interrupt.needs_reset(cause);
    }
}

fn take_message(shared: &Shared, memory: &GuestMemoryMmap<()>, from: &Buffers) -> Served {
    if !shared.takes_messages() {
        return Served::NotNow;
    }
    let mut bytes = [0; control::LEN];
    if from.read(memory, &mut bytes).is_ok()
        && let Some(message) = FromDriver::parse(bytes)
    {
        shared.handle(message);
        // Ports that were opened may have something to send.
        shared.wake_handler();
    }
    Served::Used(0)
}

fn give_message(shared: &Shared, memory: &GuestMemoryMmap<()>, to: &Buffers) -> Served {
    let Some(message) = shared.next_message() else {
        return Served::NotNow;
    };
    let bytes = message.bytes();
    // A buffer without room for it loses the message, and not the driver's next one as well.
    match to.write(memory, &bytes) {
        Ok(()) => Served::Used(u32::try_from(bytes.len()).unwrap_or(0)),
        Err(_) => Served::Used(0),
    }
}

/// Guest to host. A request of which the host takes a part waits as a whole, and its rest is taken
/// when there is room.
fn take_output(
    shared: &Shared,
    memory: &GuestMemoryMmap<()>,
    index: usize,
    from: Buffers,
) -> Served {
    let len = from.len().min(MAX_REQUEST_LEN);
    let mut taken = (shared.taken(index) as u64).min(len);
    let Ok((_, mut rest)) = from.split_at(taken) else {
        return Served::Used(0);
    };
    let mut piece = [0; PIECE_LEN];
    while taken < len {
        let count = (len - taken).min(PIECE_LEN as u64);
        let Ok((now, later)) = rest.split_at(count) else {
            break;
        };
        rest = later;
        let bytes = usize::try_from(count)
            .ok()
            .and_then(|count| piece.get_mut(..count));
        let Some(bytes) = bytes else { break };
        if now.read(memory, bytes).is_err() {
            break;
        }
        let accepted = accept(shared, index, bytes);
        taken += accepted as u64;
        if (accepted as u64) < count {
            shared.set_taken(index, usize::try_from(taken).unwrap_or(0));
            return Served::NotNow;
        }
    }
    shared.set_taken(index, 0);
    Served::Used(0)
}

/// Hands output on and tells how much of it was taken. Nobody reads a console that is none.
fn accept(shared: &Shared, index: usize, bytes: &[u8]) -> usize {
    match (index.checked_sub(1), shared.terminal()) {
        (None, Some(terminal)) => terminal.offer(bytes),
        (None, None) => bytes.len(),
        (Some(port), _) => {
            let port = shared.ports().get(port);
            port.map_or(bytes.len(), |port| port.receive(bytes))
        }
    }
}

/// Host to guest.
fn give_input(shared: &Shared, memory: &GuestMemoryMmap<()>, index: usize, to: Buffers) -> Served {
    let mut piece = [0; PIECE_LEN];
    let room = to.len().min(PIECE_LEN as u64);
    let Some(bytes) = usize::try_from(room)
        .ok()
        .and_then(|room| piece.get_mut(..room))
    else {
        return Served::Used(0);
    };
    if bytes.is_empty() {
        return Served::Used(0);
    }
    let count = match (index.checked_sub(1), shared.terminal()) {
        (None, Some(terminal)) => terminal.take_input(bytes),
        (None, None) => 0,
        (Some(port), _) => {
            let port = shared.ports().get(port);
            port.map_or(0, |port| port.send(bytes))
        }
    };
    let bytes = piece.get(..count).unwrap_or_default();
    if count == 0 || to.write(memory, bytes).is_err() {
        return Served::NotNow;
    }
    Served::Used(u32::try_from(count).unwrap_or(0))
}

impl Handler for ConsoleHandler {
    fn watch(&self) -> Vec<Watch> {
        let watch = |fd, token| Watch {
            fd,
            token,
            events: EventSet::IN,
        };
        let queues = self.queues.iter();
        let queues = queues.map(|queue| watch(queue.notify.as_raw_fd(), queue.index.into()));
        queues
            .chain([watch(self.shared.kick.as_raw_fd(), KICK)])
            .collect()
    }

    fn ready(&mut self, token: u32, _events: EventSet, _interest: &mut Interest<'_>) {
        let queue = self.queues.iter();
        let mut queue = queue.filter(|queue| u32::from(queue.index) == token);
        let fd = match queue.next() {
            Some(queue) => &*queue.notify,
            None => &self.shared.kick,
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
        self.queues
    }

    fn panicked(&self, cause: &str) {
        self.give_up(cause);
    }
}
