//! Rates that a disk keeps to, however much its guest asks for.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd as _, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use super::backend::DiskOperation;

/// Most operations and bytes a second, `None` for any number. What comes within a tenth of a
/// second may come at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Operations a second.
    pub iops: Option<NonZeroU64>,
    /// Bytes read and written a second.
    pub bytes_per_second: Option<NonZeroU64>,
}

/// How far a disk may be ahead of its rate.
const BURST: Duration = Duration::from_millis(100);
/// The longest that one operation makes its followers wait, whatever its size: the disk goes on
/// being served.
const MAX_DEBT: Duration = Duration::from_secs(60);

/// A bucket with a hole, in time: when the last of what was put in will have run out.
#[derive(Debug)]
struct Bucket {
    rate: NonZeroU64,
    empty_at: Instant,
}

impl Bucket {
    fn new(rate: NonZeroU64, now: Instant) -> Self {
        Self {
            rate,
            empty_at: now,
        }
    }

    fn put(&mut self, amount: u64, now: Instant) {
        let nanoseconds = u128::from(amount) * 1_000_000_000 / u128::from(self.rate.get());
        let takes = u64::try_from(nanoseconds).map_or(MAX_DEBT, Duration::from_nanos);
        let from = self.empty_at.max(now);
        self.empty_at = (from + takes.min(MAX_DEBT)).min(now + MAX_DEBT);
    }

    /// How long to wait before anything more is put in.
    fn wait(&self, now: Instant) -> Duration {
        let left = self.empty_at.saturating_duration_since(now);
        left.saturating_sub(BURST)
    }
}

/// The buckets of a disk. They outlive a driver's reset, which therefore does not empty them.
pub struct Limiter {
    operations: Option<Bucket>,
    bytes: Option<Bucket>,
    timer: TimerFd,
}

impl Limiter {
    /// A limiter for a disk with `limits`; none where there are none.
    ///
    /// # Errors
    /// When the host has no timer to spare.
    pub fn new(limits: RateLimits) -> io::Result<Option<Self>> {
        if limits == RateLimits::default() {
            return Ok(None);
        }
        let now = Instant::now();
        let bucket = |rate| Bucket::new(rate, now);
        Ok(Some(Self {
            operations: limits.iops.map(bucket),
            bytes: limits.bytes_per_second.map(bucket),
            timer: TimerFd::new().map_err(io::Error::from)?,
        }))
    }

    /// Becomes readable when it is time to go on.
    pub fn event(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Takes note that the time has come.
    pub fn clear(&mut self) {
        // Not by a read, which waits when the timer was set anew since.
        let _ = self.timer.clear();
    }

    /// Whether another operation may begin now. If not, the event says when.
    pub fn allows(&mut self, now: Instant) -> bool {
        let buckets = [&self.operations, &self.bytes].into_iter().flatten();
        let wait = buckets.map(|bucket| bucket.wait(now)).max();
        match wait.unwrap_or_default() {
            Duration::ZERO => true,
            // A timer that the kernel does not set would stop the disk for good.
            wait => self.timer.reset(wait, None).is_err(),
        }
    }

    /// Counts an operation that begins now.
    pub fn count(&mut self, operation: &DiskOperation, now: Instant) {
        let len = match operation {
            DiskOperation::Read { buffers, .. } | DiskOperation::Write { buffers, .. } => {
                buffers.len()
            }
            DiskOperation::Flush
            | DiskOperation::Discard { .. }
            | DiskOperation::WriteZeroes { .. } => 0,
        };
        for (bucket, amount) in [(&mut self.operations, 1), (&mut self.bytes, len)] {
            if let Some(bucket) = bucket {
                bucket.put(amount, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::block::backend::Iovecs;

    fn limiter(iops: u64, bytes_per_second: u64) -> Limiter {
        let limits = RateLimits {
            iops: NonZeroU64::new(iops),
            bytes_per_second: NonZeroU64::new(bytes_per_second),
        };
        Limiter::new(limits).unwrap().unwrap()
    }

    fn read(len: usize) -> DiskOperation {
        DiskOperation::Read {
            offset: 0,
            buffers: Iovecs::zeros(len),
        }
    }

    /// How many operations of `len` bytes begin in ten seconds, looking every millisecond.
    fn begun(mut limiter: Limiter, len: usize) -> u32 {
        let start = Instant::now();
        let mut begun = 0;
        for millisecond in 0..10_000 {
            let now = start + Duration::from_millis(millisecond);
            while limiter.allows(now) {
                limiter.count(&read(len), now);
                begun += 1;
            }
        }
        begun
    }

    #[test]
    fn the_tighter_limit_holds_after_a_short_burst() {
        let about = |count: u32, expected: u32| {
            let most = expected + expected / 50 + 2;
            assert!((expected..=most).contains(&count), "{count} of {expected}");
        };
        about(begun(limiter(100, 0), 4096), 1000);
        about(begun(limiter(0, 1 << 20), 4096), 2560);
        about(begun(limiter(100, 1 << 20), 65536), 160);
        about(begun(limiter(1, 0), 512), 10);
    }

    #[test]
    fn the_longest_operation_delays_the_next_by_a_minute_at_most() {
        let mut limiter = limiter(0, 1);
        let now = Instant::now();
        limiter.count(&read(1 << 20), now);
        limiter.count(&read(1 << 20), now);
        assert!(!limiter.allows(now + Duration::from_secs(59)));
        assert!(limiter.allows(now + Duration::from_secs(60)));
    }

    #[test]
    fn a_disk_without_limits_has_no_limiter() {
        assert!(Limiter::new(RateLimits::default()).unwrap().is_none());
    }
}
