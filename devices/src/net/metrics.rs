//! What a card has moved, and what it had to drop.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the card was made; each can be read at any time.
#[derive(Debug, Default)]
pub struct NetMetrics {
    /// Frames given to the guest.
    pub received_frames: AtomicU64,
    /// Bytes of those, without headers.
    pub received_bytes: AtomicU64,
    /// Frames for which the guest had too little buffer space.
    pub receive_drops: AtomicU64,
    /// Times the guest had no buffer at all, so that frames waited in the tap.
    pub receive_stalls: AtomicU64,
    /// Frames taken from the guest.
    pub transmitted_frames: AtomicU64,
    /// Bytes of those, without headers.
    pub transmitted_bytes: AtomicU64,
    /// Frames the host refused: a header that contradicts the frame, or the tap is down.
    pub transmit_drops: AtomicU64,
    /// Buffers of the guest that made no sense.
    pub malformed_buffers: AtomicU64,
}

impl NetMetrics {
    pub(super) fn count_received(&self, frame_len: usize) {
        add(&self.received_frames, 1);
        add(&self.received_bytes, frame_len);
    }

    pub(super) fn count_transmitted(&self, frame_len: usize) {
        add(&self.transmitted_frames, 1);
        add(&self.transmitted_bytes, frame_len);
    }
}

/// Counters stand alone: no order with anything else is needed.
pub(super) fn add(counter: &AtomicU64, amount: usize) {
    counter.fetch_add(u64::try_from(amount).unwrap_or(u64::MAX), Ordering::Relaxed);
}
