//! The card as its transport sees it.

use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};
use vmm_sys_util::eventfd::EventFd;

use super::backend::{NetBackend, Offloads};
use super::config::NetConfig;
use super::handler::NetHandler;
use super::metrics::NetMetrics;
use super::vhost::{VhostHandler, VhostNet};
use crate::event_loop::{EventLoop, Handler, HandlerId};
use crate::virtio::{ActivateError, Activation, DeviceType, QueueHandle, VirtioDevice};

/// Entries of the receive and the transmit queue. Linux fills the receive queue with buffers
/// of about an MTU: 256 of them hold six of the longest frames.
const QUEUE_SIZES: [u16; 2] = [256, 256];

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

/// A virtio network card.
pub struct Net {
    config: NetConfig,
    backend: Arc<dyn NetBackend>,
    io: EventLoop,
    metrics: Arc<NetMetrics>,
    vhost: Option<Arc<VhostNet>>,
    handler: Option<HandlerId>,
}

impl Net {
    /// A card in front of `backend`, for example a [`super::Tap`], served by the thread `io`.
    #[must_use]
    pub fn new(config: NetConfig, backend: Arc<dyn NetBackend>, io: EventLoop) -> Self {
        Self {
            config,
            backend,
            io,
            metrics: Arc::default(),
            vhost: None,
            handler: None,
        }
    }

    /// Lets the host's kernel move the frames, where interrupts can come from it. The driver
    /// sees the same card. `backend` has to be a tap.
    #[must_use]
    pub fn with_vhost(mut self, vhost: VhostNet) -> Self {
        self.vhost = Some(Arc::new(vhost));
        self
    }

    /// The card's counters; they stay readable when the card has gone into its transport. Frames
    /// that the host's kernel moves are not in them, but in the tap's own.
    #[must_use]
    pub fn metrics(&self) -> Arc<NetMetrics> {
        Arc::clone(&self.metrics)
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn device_features(&self) -> u64 {
        let mtu = self.config.mtu.map(|_| VIRTIO_NET_F_MTU);
        FEATURES
            .into_iter()
            .chain(mtu)
            .fold(0, |features, bit| features | 1 << bit)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config.space();
        let from = usize::try_from(offset)
            .ok()
            .and_then(|offset| config.get(offset..));
        let mut from = from.unwrap_or_default().iter();
        data.fill_with(|| from.next().copied().unwrap_or(0));
    }

    fn wants_queue_events(&self) -> bool {
        self.vhost.is_some()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let host = |action| move |source| ActivateError::Host { action, source };
        let offloads = Offloads::from_driver_features(activation.driver_features);
        self.backend
            .set_offloads(offloads)
            .map_err(host("set the tap's offloads"))?;
        let backend = Arc::clone(&self.backend);
        let handler: Box<dyn Handler> = match (&self.vhost, queue_events(&activation)) {
            (Some(vhost), Some(calls)) => Box::new(
                VhostHandler::start(activation, calls, Arc::clone(vhost), backend)
                    .map_err(host("hand the network queues to the kernel"))?,
            ),
            _ => Box::new(
                NetHandler::new(activation, backend, Arc::clone(&self.metrics))
                    .map_err(ActivateError::QueueMissing)?,
            ),
        };
        let id = self
            .io
            .attach(handler)
            .map_err(host("serve the network queues"))?;
        self.handler = Some(id);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<QueueHandle> {
        let handler = self.handler.take().and_then(|id| self.io.detach(id));
        handler
            .map(|handler| handler.into_queues())
            .unwrap_or_default()
    }
}

/// An event file for the interrupt of each queue, when both queues are there and have one.
fn queue_events(activation: &Activation) -> Option<Vec<Arc<EventFd>>> {
    let queues = &activation.queues;
    let event = |queue: &QueueHandle| activation.interrupt.queue_event(queue.index);
    let events: Vec<_> = queues.iter().map_while(event).collect();
    (events.len() == QUEUE_SIZES.len()).then_some(events)
}

impl Drop for Net {
    fn drop(&mut self) {
        self.deactivate();
    }
}
