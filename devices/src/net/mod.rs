//! Network card (virtio 1.2, 5.1) on a tap device: pairs of queues, checksum and
//! segmentation offloads passed through between guest and kernel, no copy in between. The host's
//! kernel serves the queues where it can (`vhost`), else the `io` thread does (`handler`).

mod backend;
mod config;
mod control;
mod device;
mod handler;
mod metrics;
mod receive;
mod segments;
mod tap;
mod used;
mod vhost;

pub use backend::{NetBackend, Offloads};
pub use config::{MacAddress, Mtu, NetConfig, NetConfigError};
pub use device::{MAX_PAIRS, Net, QueuePair};
pub use metrics::NetMetrics;
pub use tap::{Tap, TapError};
pub use vhost::{START_AND_STOP as VHOST_REQUESTS, VhostNet};

/// `struct virtio_net_hdr_v1` before every frame (5.1.6), on the queues and on the tap alike.
const HEADER_LEN: usize = 12;
/// The longest frame with its header: the largest IP packet, an Ethernet header with one VLAN
/// tag, and ours. Segmentation offload makes such frames whatever the MTU.
const MAX_FRAME_LEN: usize = HEADER_LEN + 18 + 65535;

#[cfg(test)]
mod tests;
