//! The card as its transport sees it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use prost::Message as _;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};
use vmm_sys_util::eventfd::EventFd;

use super::backend::{NetBackend, Offloads};
use super::config::NetConfig;
use super::control::{ControlHandler, Pairs};
use super::handler::NetHandler;
use super::metrics::NetMetrics;
use super::vhost::{VhostHandler, VhostNet};
use crate::event_loop::{EventLoop, Handler, HandlerId};
use crate::virtio::{ActivateError, Activation, DeviceType, QueueHandle, Reset, VirtioDevice};

/// Pairs of queues of one card at most.
pub const MAX_PAIRS: usize = 16;
/// Entries of every queue. Linux fills a receive queue with buffers of about an MTU: 256 of them
/// hold six of the longest frames.
const QUEUE_SIZE: u16 = 256;

const FEATURES: [u32; 11] = [
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS,
];

/// What is at the other end of a pair of queues.
pub struct QueuePair {
    /// Where its frames come from and go to.
    pub backend: Arc<dyn NetBackend>,
    /// Lets the host's kernel move the frames, where interrupts can come from it; the driver sees
    /// the same card. `backend` has to be a tap then.
    pub vhost: Option<VhostNet>,
}

impl QueuePair {
    /// A pair whose frames the card's own thread moves.
    #[must_use]
    pub fn new(backend: Arc<dyn NetBackend>) -> Self {
        let vhost = None;
        Self { backend, vhost }
    }
}

/// A virtio network card.
pub struct Net {
    config: NetConfig,
    pairs: Arc<Pairs>,
    backends: Vec<Backend>,
    queue_sizes: Vec<u16>,
    io: EventLoop,
    metrics: Arc<NetMetrics>,
    handlers: Vec<HandlerId>,
}

struct Backend {
    frames: Arc<dyn NetBackend>,
    vhost: Option<Arc<VhostNet>>,
}

/// What a saved machine keeps of its card.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct NetState {
    /// How many pairs of queues its driver uses; none is one.
    #[prost(uint32, tag = "1")]
    pairs: u32,
}

impl Net {
    /// A card in front of `pairs`, for example of the queues of a [`super::Tap`], served by the
    /// thread `io`. There is at least one pair; those beyond [`MAX_PAIRS`] are not used.
    #[must_use]
    pub fn new(config: NetConfig, pairs: Vec<QueuePair>, io: EventLoop) -> Self {
        let backends: Vec<_> = pairs
            .into_iter()
            .take(MAX_PAIRS)
            .map(|pair| Backend {
                frames: pair.backend,
                vhost: pair.vhost.map(Arc::new),
            })
            .collect();
        let has_control = backends.len() > 1;
        let frames = backends.iter().map(|backend| Arc::clone(&backend.frames));
        Self {
            config,
            pairs: Arc::new(Pairs::new(frames.collect())),
            queue_sizes: vec![QUEUE_SIZE; 2 * backends.len() + usize::from(has_control)],
            backends,
            io,
            metrics: Arc::default(),
            handlers: Vec::new(),
        }
    }

    /// The card's counters; they stay readable when the card has gone into its transport. Frames
    /// that the host's kernel moves are not in them, but in the tap's own.
    #[must_use]
    pub fn metrics(&self) -> Arc<NetMetrics> {
        Arc::clone(&self.metrics)
    }
}

/// Whether its driver accepted a feature.
fn has(features: u64, bit: u32) -> bool {
    features >> bit & 1 == 1
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn device_features(&self) -> u64 {
        let mtu = self.config.mtu.map(|_| VIRTIO_NET_F_MTU);
        let several = [VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ];
        let several = several.into_iter().filter(|_| self.backends.len() > 1);
        FEATURES
            .into_iter()
            .chain(mtu)
            .chain(several)
            .fold(0, |features, bit| features | 1 << bit)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config.space(self.pairs.count());
        let from = usize::try_from(offset)
            .ok()
            .and_then(|offset| config.get(offset..));
        let mut from = from.unwrap_or_default().iter();
        data.fill_with(|| from.next().copied().unwrap_or(0));
    }

    fn wants_queue_events(&self) -> bool {
        self.backends.iter().any(|backend| backend.vhost.is_some())
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let features = activation.driver_features;
        let mut queues: BTreeMap<u16, QueueHandle> = BTreeMap::new();
        queues.extend(
            activation
                .queues
                .into_iter()
                .map(|queue| (queue.index, queue)),
        );
        let served = if has(features, VIRTIO_NET_F_MQ) {
            self.backends.len()
        } else {
            1
        };
        let offloads = Offloads::from_driver_features(features);
        let mut handlers: Vec<Box<dyn Handler>> = Vec::new();
        for (first, backend) in (0_u16..).step_by(2).zip(self.backends.iter().take(served)) {
            let pair = [first, first + 1].map(|index| queues.remove(&index));
            let activation = Activation {
                memory: Arc::clone(&activation.memory),
                driver_features: features,
                queues: pair.into_iter().flatten().collect(),
                interrupt: Arc::clone(&activation.interrupt),
            };
            // All queues of a tap are told the same.
            if first == 0 {
                let set = backend.frames.set_offloads(offloads);
                set.map_err(host("set the tap's offloads"))?;
            } else if activation.queues.len() < 2 {
                continue;
            }
            handlers.push(backend.handler(first, activation, &self.metrics)?);
        }
        // Behind the pairs that the driver knows of (5.1.2).
        let control = u16::try_from(2 * served).unwrap_or(u16::MAX);
        let has_control = has(features, VIRTIO_NET_F_CTRL_VQ);
        if let Some(queue) = queues.remove(&control).filter(|_| has_control) {
            handlers.push(Box::new(ControlHandler {
                memory: activation.memory,
                queue,
                interrupt: activation.interrupt,
                pairs: Arc::clone(&self.pairs),
                broken: false,
            }));
        }
        for handler in handlers {
            let attached = self.io.attach(handler);
            self.handlers
                .push(attached.map_err(host("serve the network queues"))?);
        }
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<QueueHandle> {
        let handlers = std::mem::take(&mut self.handlers).into_iter();
        let handlers = handlers.filter_map(|id| self.io.detach(id));
        let mut queues: Vec<_> = handlers.flat_map(|handler| handler.into_queues()).collect();
        queues.sort_by_key(|queue| queue.index);
        queues
    }

    fn reset(&mut self, _: Reset) {
        if let Err(error) = self.pairs.set_in_use(1) {
            tracing::warn!(%error, "a network card's queues stay in use");
        }
    }

    fn save(&self) -> Vec<u8> {
        let pairs = self.pairs.in_use().into();
        NetState { pairs }.encode_to_vec()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), prost::DecodeError> {
        let pairs = NetState::decode(state)?.pairs;
        let pairs = u16::try_from(pairs).unwrap_or(u16::MAX);
        if let Err(error) = self.pairs.set_in_use(pairs.clamp(1, self.pairs.count())) {
            tracing::warn!(%error, "a network card uses one pair of queues");
        }
        Ok(())
    }
}

impl Backend {
    fn handler(
        &self,
        first: u16,
        activation: Activation,
        metrics: &Arc<NetMetrics>,
    ) -> Result<Box<dyn Handler>, ActivateError> {
        let frames = Arc::clone(&self.frames);
        Ok(match (&self.vhost, queue_events(&activation)) {
            (Some(vhost), Some(calls)) => Box::new(
                VhostHandler::start(activation, calls, Arc::clone(vhost), frames)
                    .map_err(host("hand the network queues to the kernel"))?,
            ),
            _ => Box::new(
                NetHandler::new(activation, first, frames, Arc::clone(metrics))
                    .map_err(ActivateError::QueueMissing)?,
            ),
        })
    }
}

fn host(action: &'static str) -> impl Fn(io::Error) -> ActivateError {
    move |source| ActivateError::Host { action, source }
}

/// An event file for the interrupt of each queue of a pair, when both are there and have one.
fn queue_events(activation: &Activation) -> Option<Vec<Arc<EventFd>>> {
    let queues = &activation.queues;
    let event = |queue: &QueueHandle| activation.interrupt.queue_event(queue.index);
    let events: Vec<_> = queues.iter().map_while(event).collect();
    (events.len() == 2).then_some(events)
}

impl Drop for Net {
    fn drop(&mut self) {
        self.deactivate();
    }
}
