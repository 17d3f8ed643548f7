//! The entropy device (virtio 1.2, 5.4): the host's random numbers for the guest.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::timerfd::TimerFd;

use super::chain::{Buffers, Parts};
use super::device::{
    ActivateError, Activation, DeviceType, QueueHandle, VirtioDevice, VirtioInterrupt,
};
use super::serve::{Served, serve};
use crate::GuestMemory;
use crate::event_loop::{EventLoop, EventSet, Handler, HandlerId, Interest, Watch};

const QUEUE_SIZES: [u16; 1] = [64];
/// Most bytes one request gets. Linux asks for 64 at a time; a driver takes less than it
/// asked for, and a hostile one must not keep the thread for gigabytes.
const MAX_REQUEST_LEN: usize = 4096;
/// Most buffers of one request.
const MAX_BUFFERS: usize = 16;

const QUEUE: u32 = 0;
const TICK: u32 = 1;

/// How much entropy a guest may draw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RngConfig {
    /// Most bytes a second, `None` for any number. One second's worth may come at once.
    pub bytes_per_second: Option<NonZeroU32>,
}

/// The entropy device.
pub struct Rng {
    io: EventLoop,
    limit: Option<Arc<Mutex<Limit>>>,
    active: Option<HandlerId>,
}

impl Rng {
    /// A device that is served by `io`.
    ///
    /// # Errors
    /// When the host has no timer to spare for a limited rate.
    pub fn new(config: RngConfig, io: EventLoop) -> io::Result<Self> {
        let limit = config.bytes_per_second.map(Limit::new).transpose()?;
        Ok(Self {
            io,
            limit: limit.map(|limit| Arc::new(Mutex::new(limit))),
            active: None,
        })
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> DeviceType {
        DeviceType::Rng
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn device_features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            mut queues,
            interrupt,
            ..
        } = activation;
        let queue = queues.pop().ok_or(ActivateError::QueueMissing(0))?;
        let limit = self.limit.clone();
        let handler = Box::new(RngHandler {
            memory,
            queue,
            interrupt,
            limit,
        });
        let attached = self.io.attach(handler);
        let action = "watch the entropy queue";
        self.active = Some(attached.map_err(|source| ActivateError::Host { action, source })?);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<QueueHandle> {
        let handler = self.active.take().and_then(|id| self.io.detach(id));
        handler.map(Handler::into_queues).unwrap_or_default()
    }
}

impl Drop for Rng {
    fn drop(&mut self) {
        self.deactivate();
    }
}

/// A bucket that fills with the allowed rate. It outlives a driver's reset, which therefore
/// does not fill it.
struct Limit {
    bytes_per_second: NonZeroU32,
    left: u64,
    filled: Instant,
    timer: TimerFd,
}

impl Limit {
    fn new(bytes_per_second: NonZeroU32) -> io::Result<Self> {
        let left = u64::from(bytes_per_second.get());
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Self {
            bytes_per_second,
            left,
            filled: Instant::now(),
            timer,
        })
    }

    /// How many of `wanted` bytes are allowed: all, or a second's worth where that is less. Too early
    /// it says how long to wait: part of a request is no use to anybody, and an interrupt for every
    /// byte is dear.
    fn take(&mut self, wanted: u64, now: Instant) -> Result<u64, Duration> {
        let rate = u64::from(self.bytes_per_second.get());
        let passed = now.saturating_duration_since(self.filled);
        let earned = u128::from(rate) * passed.as_micros() / 1_000_000;
        if earned > 0 {
            let earned = u64::try_from(earned).unwrap_or(u64::MAX);
            self.left = self.left.saturating_add(earned).min(rate);
            self.filled = now;
        }
        let taken = wanted.min(rate);
        match self.left.checked_sub(taken) {
            Some(left) => {
                self.left = left;
                Ok(taken)
            }
            None => Err(Duration::from_micros(
                ((taken - self.left) * 1_000_000).div_ceil(rate),
            )),
        }
    }
}

fn lock(limit: &Mutex<Limit>) -> MutexGuard<'_, Limit> {
    limit.lock().unwrap_or_else(PoisonError::into_inner)
}

struct RngHandler {
    memory: GuestMemory,
    queue: QueueHandle,
    interrupt: Arc<dyn VirtioInterrupt>,
    limit: Option<Arc<Mutex<Limit>>>,
}

impl RngHandler {
    /// Serves what it may, and says how long the next request has to wait.
    fn round(&mut self) -> Result<Option<Duration>, virtio_queue::Error> {
        let Self {
            memory,
            queue,
            interrupt,
            limit,
        } = self;
        let mut wait = None;
        serve(queue, memory, interrupt.as_ref(), |chain| {
            let Ok(parts) = Parts::of(chain, MAX_BUFFERS) else {
                return Served::Used(0);
            };
            let wanted = parts.writable.len().min(MAX_REQUEST_LEN as u64);
            let allowed = match limit {
                Some(limit) => lock(limit).take(wanted, Instant::now()),
                None => Ok(wanted),
            };
            match allowed {
                Ok(allowed) => Served::Used(fill(parts.writable, memory, allowed).unwrap_or(0)),
                Err(early) => {
                    wait = Some(early);
                    Served::NotNow
                }
            }
        })?;
        Ok(wait)
    }
}

impl Handler for RngHandler {
    fn watch(&self) -> Vec<Watch> {
        let events = EventSet::IN;
        let mut watches = vec![Watch {
            fd: self.queue.notify.as_raw_fd(),
            token: QUEUE,
            events,
        }];
        if let Some(limit) = &self.limit {
            watches.push(Watch {
                fd: lock(limit).timer.as_raw_fd(),
                token: TICK,
                events,
            });
        }
        watches
    }

    fn ready(&mut self, token: u32, _events: EventSet, interest: &mut Interest<'_>) {
        if let (TICK, Some(limit)) = (token, &self.limit) {
            // Only clears the timer. Not by a read, which waits when it was set anew since.
            let _ = lock(limit).timer.clear();
        } else {
            // Only clears the counter.
            let _ = self.queue.notify.read();
        }
        match (self.round(), &self.limit) {
            (Err(error), _) => {
                self.interrupt.needs_reset(&error.to_string());
                // Nothing more is served; there is no use in listening.
                let _ = interest.modify(QUEUE, EventSet::empty());
            }
            (Ok(Some(wait)), Some(limit)) => {
                if lock(limit).timer.reset(wait, None).is_err() {
                    self.interrupt.needs_reset("the rate's timer failed");
                }
            }
            (Ok(_), _) => {}
        }
    }

    fn into_queues(self: Box<Self>) -> Vec<QueueHandle> {
        vec![self.queue]
    }

    fn panicked(&self, cause: &str) {
        self.interrupt.needs_reset(cause);
    }
}

/// Fills the first `len` bytes of `buffers` with random numbers and returns `len`.
fn fill(buffers: Buffers, memory: &GuestMemoryMmap<()>, len: u64) -> io::Result<u32> {
    let mut random = [0; MAX_REQUEST_LEN];
    let count = usize::try_from(len).map_err(io::Error::other)?;
    let bytes = random.get_mut(..count).ok_or(io::ErrorKind::InvalidInput)?;
    random_bytes(bytes)?;
    buffers.write(memory, bytes).map_err(io::Error::other)?;
    u32::try_from(len).map_err(io::Error::other)
}

/// The host's random numbers.
fn random_bytes(mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the kernel writes at most `bytes.len()` bytes to `bytes`.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => bytes = bytes.get_mut(got..).unwrap_or_default(),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Buffer, NEXT, RawDescriptor, TestDriver};

    fn rng(bytes_per_second: u32) -> Rng {
        let io = EventLoop::spawn("test-io", Box::new(|| Ok(()))).unwrap();
        let config = RngConfig {
            bytes_per_second: NonZeroU32::new(bytes_per_second),
        };
        Rng::new(config, io).unwrap()
    }

    fn driver() -> TestDriver {
        TestDriver::new(0x20000, &QUEUE_SIZES)
    }

    #[test]
    fn a_request_is_filled_with_random_bytes() {
        let (mut rng, mut driver) = (rng(0), driver());
        driver.start(&mut rng, 0);
        driver.request(0, &[], 64);
        let first = driver.complete(0);
        driver.request(0, &[], 64);
        let second = driver.complete(0);
        assert_eq!((first.len, second.len), (64, 64));
        assert_ne!(first.writable, second.writable);
        driver
            .interrupt
            .wait_until(|seen| seen.queues.get(&0) == Some(&2));
    }

    #[test]
    fn a_huge_request_gets_a_bounded_part() {
        let (mut rng, mut driver) = (rng(0), driver());
        driver.start(&mut rng, 0);
        driver.request(0, &[], 0x10000);
        assert_eq!(driver.complete(0).len, 4096);
    }

    #[test]
    fn malformed_requests_fail_alone() {
        let (mut rng, mut driver) = (rng(0), driver());
        driver.start(&mut rng, 0);
        let nowhere = Buffer {
            address: 0xffff_0000,
            len: 64,
            writable: true,
        };
        let readable = Buffer {
            address: 0x8000,
            len: 64,
            writable: false,
        };
        driver.queues[0].add(&[nowhere]);
        driver.queues[0].add(&[readable]);
        let endless = RawDescriptor {
            address: 0x8000,
            len: 8,
            flags: NEXT,
            next: 63,
        };
        driver.queues[0].write_descriptor(63, endless);
        driver.queues[0].publish(63);
        driver.request(0, &[], 16);
        for expected in [0, 0, 0, 16] {
            assert_eq!(driver.complete(0).len, expected);
        }
        assert!(driver.interrupt.seen().needs_reset.is_empty());
    }

    #[test]
    fn a_broken_ring_needs_a_reset_after_which_the_device_works_again() {
        let (mut rng, driver) = (rng(0), driver());
        driver.start(&mut rng, 0);
        let mut driver = driver;
        driver.queues[0].set_avail_index(1000);
        driver.queues[0].kick();
        driver
            .interrupt
            .wait_until(|seen| !seen.needs_reset.is_empty());
        assert_eq!(rng.deactivate().len(), 1);
        let mut driver = self::driver();
        driver.start(&mut rng, 0);
        driver.request(0, &[], 8);
        assert_eq!(driver.complete(0).len, 8);
    }

    #[test]
    fn a_drained_device_goes_on_with_its_queues() {
        let (mut rng, mut driver) = (rng(0), driver());
        driver.start(&mut rng, 0);
        driver.request(0, &[], 8);
        driver.complete(0);
        let mut activation = driver.activation(0);
        activation.queues = rng.deactivate();
        driver.request(0, &[], 8);
        rng.activate(activation).unwrap();
        assert_eq!(driver.complete(0).len, 8);
    }

    #[test]
    fn the_rate_holds_requests_back_but_answers_them_in_the_end() {
        let (mut rng, mut driver) = (rng(1000), driver());
        driver.start(&mut rng, 0);
        let start = Instant::now();
        let mut got = 0;
        while got < 1200 {
            driver.request(0, &[], 400);
            got += driver.complete(0).len;
        }
        assert!(
            start.elapsed() >= Duration::from_millis(50),
            "only the first second is free"
        );
    }

    #[test]
    fn no_request_gets_a_part_of_what_it_can_have() {
        let (mut rng, mut driver) = (rng(1000), driver());
        driver.start(&mut rng, 0);
        for len in [64; 18].into_iter().chain([5000]) {
            driver.request(0, &[], len);
            assert_eq!(driver.complete(0).len, len.min(1000));
        }
    }

    #[test]
    fn the_bucket_earns_with_time_and_never_holds_more_than_a_second() {
        let mut limit = Limit::new(NonZeroU32::new(1000).unwrap()).unwrap();
        let start = limit.filled;
        let later = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!(limit.take(5000, start), Ok(1000));
        assert_eq!(limit.take(1, start), Err(Duration::from_millis(1)));
        assert_eq!(limit.take(500, later(100)), Err(Duration::from_millis(400)));
        assert_eq!(limit.take(500, later(500)), Ok(500));
        assert_eq!(limit.take(9999, later(60_000)), Ok(1000));
        assert!(limit.take(1, later(60_000)).is_err());
    }
}
