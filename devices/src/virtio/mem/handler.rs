//! The request queue on the event loop's thread.

use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::Shared;
use super::blocks::{BlockError, Blocks, Run, RunState};
use crate::GuestMemory;
use crate::event_loop::{EventSet, Handler, Interest, Watch};
use crate::virtio::balloon::reclaim;
use crate::virtio::chain::{GuestRange, Parts};
use crate::virtio::device::{Activation, QueueHandle, VirtioInterrupt};
use crate::virtio::serve::{Served, serve};

/// `struct virtio_mem_req`: type, padding; address, number of blocks, padding.
const REQUEST_LEN: usize = 24;
/// `struct virtio_mem_resp`: type, padding; state.
const RESPONSE_LEN: usize = 10;
const RESPONSE_USED: u32 = 10;
/// Buffers of a request: one each way, which a driver may cut.
const MAX_BUFFERS: usize = 8;

/// What a guest asks for (virtio 1.2, 5.15.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemRequest {
    Plug { address: u64, count: u16 },
    Unplug { address: u64, count: u16 },
    UnplugAll,
    State { address: u64, count: u16 },
}

/// What it hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemResponse {
    Ack,
    State(RunState),
    /// Not now: more than the host wants the guest to have.
    Nack,
    /// Not at all.
    Error,
}

impl MemRequest {
    pub(super) fn parse(bytes: &[u8; REQUEST_LEN]) -> Option<Self> {
        let (kind, rest) = bytes.split_first_chunk::<2>()?;
        let rest = rest.get(6..)?;
        let (address, rest) = rest.split_first_chunk::<8>()?;
        let (count, _) = rest.split_first_chunk::<2>()?;
        let (address, count) = (u64::from_le_bytes(*address), u16::from_le_bytes(*count));
        match u16::from_le_bytes(*kind) {
            0 => Some(Self::Plug { address, count }),
            1 => Some(Self::Unplug { address, count }),
            2 => Some(Self::UnplugAll),
            3 => Some(Self::State { address, count }),
            _ => None,
        }
    }
}

impl MemResponse {
    fn to_bytes(self) -> [u8; RESPONSE_LEN] {
        let (kind, state) = match self {
            Self::Ack => (0, 0),
            Self::State(RunState::Plugged) => (0, 0),
            Self::State(RunState::Unplugged) => (0, 1),
            Self::State(RunState::Mixed) => (0, 2),
            Self::Nack => (1, 0),
            Self::Error => (3, 0),
        };
        let mut bytes = [0; RESPONSE_LEN];
        bytes[0] = kind;
        bytes[8] = state;
        bytes
    }
}

/// The queue, from activation to reset.
pub struct MemHandler {
    memory: GuestMemory,
    queues: Vec<QueueHandle>,
    interrupt: Arc<dyn VirtioInterrupt>,
    shared: Arc<Shared>,
}

impl MemHandler {
    /// Takes over the activated queue.
    pub(super) fn new(activation: Activation, shared: Arc<Shared>) -> Self {
        let Activation {
            memory,
            queues,
            interrupt,
            ..
        } = activation;
        Self {
            memory,
            queues,
            interrupt,
            shared,
        }
    }

    fn round(&mut self) -> Result<(), virtio_queue::Error> {
        let Self {
            memory,
            queues,
            interrupt,
            shared,
        } = self;
        let Some(queue) = queues.first_mut() else {
            return Ok(());
        };
        // Only clears the counter.
        let _ = queue.notify.read();
        serve(queue, memory, interrupt.as_ref(), |chain| {
            let Ok(parts) = Parts::of(chain, MAX_BUFFERS) else {
                return Served::Used(0);
            };
            let mut bytes = [0; REQUEST_LEN];
            let read = parts.readable.read(memory, &mut bytes);
            let request = read.ok().and_then(|()| MemRequest::parse(&bytes));
            let response = request.map_or(MemResponse::Error, |request| {
                answer(shared, memory, request)
            });
            if response == MemResponse::Error {
                shared.refused.fetch_add(1, Ordering::Relaxed);
            }
            match parts.writable.write(memory, &response.to_bytes()) {
                Ok(()) => Served::Used(RESPONSE_USED),
                Err(_) => Served::Used(0),
            }
        })
    }
}

impl Handler for MemHandler {
    fn watch(&self) -> Vec<Watch> {
        let watch = |queue: &QueueHandle| Watch {
            fd: queue.notify.as_raw_fd(),
            token: queue.index.into(),
            events: EventSet::IN,
        };
        self.queues.iter().map(watch).collect()
    }

    fn ready(&mut self, token: u32, _events: EventSet, interest: &mut Interest<'_>) {
        if let Err(error) = self.round() {
            self.interrupt.needs_reset(&error.to_string());
            // Nothing more is served; there is no use in listening.
            let _ = interest.modify(token, EventSet::empty());
        }
    }

    fn into_queues(self: Box<Self>) -> Vec<QueueHandle> {
        self.queues
    }

    fn panicked(&self, cause: &str) {
        self.interrupt.needs_reset(cause);
    }
}

fn answer(shared: &Shared, memory: &GuestMemoryMmap<()>, request: MemRequest) -> MemResponse {
    let mut blocks = shared.blocks();
    let answered = match request {
        MemRequest::Plug { address, count } => plug(shared, &mut blocks, address, count),
        MemRequest::Unplug { address, count } => {
            let run = blocks.run(address, count);
            run.and_then(|run| unplug(&mut blocks, memory, run))
        }
        MemRequest::UnplugAll => {
            blocks.clear();
            let region = blocks.region();
            discard(memory, region.base, region.len);
            Ok(MemResponse::Ack)
        }
        MemRequest::State { address, count } => {
            let run = blocks.run(address, count);
            run.map(|run| MemResponse::State(blocks.state(run)))
        }
    };
    answered.unwrap_or(MemResponse::Error)
}

fn plug(
    shared: &Shared,
    blocks: &mut Blocks,
    address: u64,
    count: u16,
) -> Result<MemResponse, BlockError> {
    let run = blocks.run(address, count)?;
    let wanted = shared.requested.load(Ordering::Acquire);
    if blocks.plugged_len() + blocks.len(run) > wanted {
        return Ok(MemResponse::Nack);
    }
    blocks.plug(run)?;
    Ok(MemResponse::Ack)
}

fn unplug(
    blocks: &mut Blocks,
    memory: &GuestMemoryMmap<()>,
    run: Run,
) -> Result<MemResponse, BlockError> {
    blocks.unplug(run)?;
    discard(memory, blocks.address(run), blocks.len(run));
    Ok(MemResponse::Ack)
}

/// Gives memory back to the host. What does not go back is the guest's no more all the same, and
/// counts in the pod's control group.
fn discard(memory: &GuestMemoryMmap<()>, address: u64, len: u64) {
    let range = GuestRange {
        address: GuestAddress(address),
        len: usize::try_from(len).unwrap_or(usize::MAX),
    };
    if let Err(error) = reclaim(memory, range) {
        tracing::debug!(%error, "unplugged memory does not go back to the host");
    }
}
