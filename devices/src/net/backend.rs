//! Where a card's frames come from and go to.

use std::io;
use std::os::fd::AsFd;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
};

/// What a guest accepts in the frames it receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums that are not filled in.
    pub checksum: bool,
    /// TCP over IPv4 in segments larger than the MTU.
    pub tso4: bool,
    /// The same over IPv6.
    pub tso6: bool,
    /// Such segments with congestion notification.
    pub ecn: bool,
}

impl Offloads {
    /// What the driver accepted. Segments need checksums to be filled in by others (5.1.3.1).
    #[must_use]
    pub fn from_driver_features(features: u64) -> Self {
        let has = |bit: u32| features >> bit & 1 == 1;
        let checksum = has(VIRTIO_NET_F_GUEST_CSUM);
        let tso4 = checksum && has(VIRTIO_NET_F_GUEST_TSO4);
        let tso6 = checksum && has(VIRTIO_NET_F_GUEST_TSO6);
        let ecn = (tso4 || tso6) && has(VIRTIO_NET_F_GUEST_ECN);
        Self {
            checksum,
            tso4,
            tso6,
            ecn,
        }
    }
}

/// A descriptor of which each read and each write moves one frame, with the header of
/// virtio 1.2 (5.1.6, 12 bytes) before it, and never blocks.
pub trait NetBackend: AsFd + Send + Sync {
    /// Tells the other side what it may leave to the guest.
    ///
    /// # Errors
    /// When the host has no such offloads.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// Whether frames come to this queue of a backend that has several; all that are out of use have
    /// none. A backend with one queue always uses it.
    ///
    /// # Errors
    /// What the host says.
    fn set_in_use(&self, in_use: bool) -> io::Result<()> {
        let _ = in_use;
        Ok(())
    }
}
