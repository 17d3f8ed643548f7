//! The device as its transport sees it.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::sync::Arc;

use super::handler::VsockHandler;
use super::host::{Shared, VsockHost};
use super::muxer::Muxer;
use crate::event_loop::{EventLoop, HandlerId};
use crate::virtio::{ActivateError, Activation, DeviceType, QueueHandle, Reset, VirtioDevice};

/// Entries of the receive, transmit and event queues. Linux fills the receive queue with
/// buffers of 4 KiB and keeps eight for events, so more would cost the guest memory.
const QUEUE_SIZES: [u16; 3] = [128, 128, 8];

/// What a guest's socket device is made of.
#[derive(Clone, Copy, Debug)]
pub struct VsockConfig {
    /// The guest's address, at least 3 (`linux/vm_sockets.h`). It means something only inside
    /// the guest: our muxer has one guest.
    pub guest_cid: u64,
    /// The one port on the host that the guest can reach.
    pub ready_port: u32,
}

/// A virtio socket device (virtio 1.2, 5.10) whose host side lives in this process.
pub struct Vsock {
    config: VsockConfig,
    io: EventLoop,
    shared: Arc<Shared>,
    handler: Option<HandlerId>,
}

impl Vsock {
    /// Makes the device, to be served by the thread `io`, and the host's side of it.
    ///
    /// # Errors
    /// When the host has no event file to give.
    pub fn new(config: VsockConfig, io: EventLoop) -> io::Result<(Self, VsockHost)> {
        // A restored guest must not mistake a new connection for one it had before.
        let [a, b, c, d, ..] = RandomState::new().build_hasher().finish().to_le_bytes();
        let seed = u32::from_le_bytes([a, b, c, d]);
        let muxer = Muxer::new(config.guest_cid, config.ready_port, seed);
        let shared = Arc::new(Shared::new(muxer)?);
        let host = VsockHost::new(Arc::clone(&shared));
        Ok((
            Self {
                config,
                io,
                shared,
                handler: None,
            },
            host,
        ))
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> DeviceType {
        DeviceType::Vsock
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn device_features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // struct virtio_vsock_config (5.10.4).
        let config = self.config.guest_cid.to_le_bytes();
        let from = usize::try_from(offset)
            .ok()
            .and_then(|offset| config.get(offset..));
        let mut from = from.unwrap_or_default().iter();
        data.fill_with(|| from.next().copied().unwrap_or(0));
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let handler = VsockHandler::new(activation, Arc::clone(&self.shared))
            .map_err(ActivateError::QueueMissing)?;
        let attached = self.io.attach(Box::new(handler)).and_then(|id| {
            self.handler = Some(id);
            // What was asked for before the driver came up is waiting.
            self.shared.kick.write(1)
        });
        attached.map_err(|source| ActivateError::Host {
            action: "serve the vsock queues",
            source,
        })
    }

    fn deactivate(&mut self) -> Vec<QueueHandle> {
        let Some(id) = self.handler.take() else {
            return Vec::new();
        };
        let handler = self.io.detach(id);
        self.shared.as_device(|muxer| (muxer.reset_all(), false));
        handler
            .map(|handler| handler.into_queues())
            .unwrap_or_default()
    }

    fn reset(&mut self, reset: Reset) {
        // What was dialled without a driver waits for the first one, but not for another boot's.
        if reset == Reset::Machine {
            self.shared.as_device(|muxer| (muxer.reset_all(), false));
        }
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.deactivate();
        self.shared.as_device(|muxer| (muxer.shut(), false));
    }
}
