//! The balloon's queues on the event loop's thread.

use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::{DEFLATE_QUEUE, INFLATE_QUEUE, PAGE_SHIFT, Shared, reclaim};
use crate::GuestMemory;
use crate::event_loop::{EventSet, Handler, Interest, Watch};
use crate::virtio::chain::{Buffers, GuestRange, Parts};
use crate::virtio::device::{Activation, QueueHandle, VirtioInterrupt};
use crate::virtio::serve::{Served, serve};

const PAGE_LEN: usize = 1 << PAGE_SHIFT;
const PFN_LEN: usize = size_of::<u32>();
/// Page numbers taken from a request at once. Linux puts 256 into one.
const PFNS_AT_ONCE: usize = 256;
/// Most page numbers of one request; a hostile guest must not keep the thread with more.
const MAX_PFNS: u64 = 16 << 10;
/// Most buffers of one request. Linux reports 32 ranges at once.
const MAX_BUFFERS: usize = 64;

/// The queues, from activation to reset.
pub struct BalloonHandler {
    memory: GuestMemory,
    queues: Vec<QueueHandle>,
    interrupt: Arc<dyn VirtioInterrupt>,
    shared: Arc<Shared>,
}

impl BalloonHandler {
    /// Takes over the activated queues.
    pub fn new(activation: Activation, shared: Arc<Shared>) -> Self {
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

    fn round(&mut self, token: u32) -> Result<(), virtio_queue::Error> {
        let Self {
            memory,
            queues,
            interrupt,
            shared,
        } = self;
        let Some(queue) = queues
            .iter_mut()
            .find(|queue| u32::from(queue.index) == token)
        else {
            return Ok(());
        };
        // Only clears the counter.
        let _ = queue.notify.read();
        let index = queue.index;
        serve(queue, memory, interrupt.as_ref(), |chain| {
            // A malformed request gives nothing back.
            if let Ok(parts) = Parts::of(chain, MAX_BUFFERS) {
                match index {
                    INFLATE_QUEUE => inflate(shared, memory, parts.readable),
                    // The guest takes pages back by touching them.
                    DEFLATE_QUEUE => {}
                    _ => give_back(shared, memory, parts.writable.ranges()),
                }
            }
            Served::Used(0)
        })
    }
}

impl Handler for BalloonHandler {
    fn watch(&self) -> Vec<Watch> {
        let watch = |queue: &QueueHandle| Watch {
            fd: queue.notify.as_raw_fd(),
            token: queue.index.into(),
            events: EventSet::IN,
        };
        self.queues.iter().map(watch).collect()
    }

    fn ready(&mut self, token: u32, _events: EventSet, interest: &mut Interest<'_>) {
        if let Err(error) = self.round(token) {
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

/// Gives back the pages whose numbers are in `numbers`.
fn inflate(shared: &Shared, memory: &GuestMemoryMmap<()>, numbers: Buffers) {
    let mut rest = numbers;
    let mut left = MAX_PFNS.min(rest.len() / PFN_LEN as u64);
    let mut bytes = [0; PFNS_AT_ONCE * PFN_LEN];
    while left > 0 {
        let count = left.min(PFNS_AT_ONCE as u64);
        left -= count;
        let Ok((now, later)) = rest.split_at(count * PFN_LEN as u64) else {
            return;
        };
        rest = later;
        let len = usize::try_from(now.len()).unwrap_or(0);
        let Some(bytes) = bytes.get_mut(..len) else {
            return;
        };
        if now.read(memory, bytes).is_ok() {
            let (words, _) = bytes.as_chunks();
            let pages = words.iter().map(|&word| u32::from_le_bytes(word)).collect();
            give_back(shared, memory, &runs(pages));
        }
    }
}

/// The fewest ranges that cover these pages.
fn runs(mut pages: Vec<u32>) -> Vec<GuestRange> {
    pages.sort_unstable();
    pages.dedup();
    let mut runs: Vec<GuestRange> = Vec::new();
    for page in pages {
        let address = u64::from(page) << PAGE_SHIFT;
        match runs.last_mut() {
            Some(last) if last.address.0 + last.len as u64 == address => last.len += PAGE_LEN,
            _ => runs.push(GuestRange {
                address: GuestAddress(address),
                len: PAGE_LEN,
            }),
        }
    }
    runs
}

fn give_back(shared: &Shared, memory: &GuestMemoryMmap<()>, ranges: &[GuestRange]) {
    for range in ranges {
        match reclaim(memory, *range) {
            Ok(len) => shared.reclaimed.fetch_add(len, Ordering::Relaxed),
            Err(_) => shared.refused.fetch_add(1, Ordering::Relaxed),
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn neighbouring_pages_become_one_range() {
        let ranges = runs(vec![9, 3, 4, 5, 4, u32::MAX]);
        let plain: Vec<_> = ranges
            .iter()
            .map(|range| (range.address.0, range.len))
            .collect();
        assert_eq!(
            plain,
            [
                (0x3000, 0x3000),
                (0x9000, 0x1000),
                (0x0fff_ffff_f000, 0x1000)
            ]
        );
    }

    proptest! {
        #[test]
        fn runs_cover_exactly_the_pages_they_were_made_of(pages in prop::collection::btree_set(0_u32..64, 0..64)) {
            let ranges = runs(pages.iter().copied().collect());
            let covered = ranges.iter().flat_map(|range| {
                let first = range.address.0 >> PAGE_SHIFT;
                first..first + (range.len >> PAGE_SHIFT) as u64
            });
            let covered: Vec<u64> = covered.collect();
            prop_assert_eq!(covered, pages.iter().map(|&page| u64::from(page)).collect::<Vec<_>>());
        }
    }
}
