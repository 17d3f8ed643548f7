//! The one terminal of a machine, shared by its device and its users.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use tracing::debug;

use super::log::ConsoleLog;
use super::reader::{ConsoleReader, ReaderConfig, Ring};

/// How much input waits for the guest, in bytes: a pasted screenful.
pub const INPUT_CAPACITY: usize = 4 << 10;

/// A device that shows the terminal to a guest. Called from any thread, without locks of the
/// terminal; it must not block.
pub trait ConsoleDevice: Send + Sync {
    /// There is room for output that was refused.
    fn output_room(&self);
    /// There is input to take.
    fn input_ready(&self);
}

/// Sees each byte of output as it comes, on the thread that prints it, which waits.
pub type ConsoleTap = Box<dyn Fn(u8) + Send + Sync>;

/// A terminal. Clones are the same one.
#[derive(Clone)]
pub struct Terminal {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    log: Arc<ConsoleLog>,
    tap: OnceLock<ConsoleTap>,
    devices: Mutex<Vec<Weak<dyn ConsoleDevice>>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    readers: BTreeMap<u64, Ring>,
    last_reader: u64,
    /// A device was refused and waits for room.
    stalled: bool,
    input: VecDeque<u8>,
    typists: Vec<Waker>,
    closed: bool,
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Terminal {
    /// A terminal without readers and devices.
    #[must_use]
    pub fn new() -> Self {
        let log = ConsoleLog::new(Box::new(|line| debug!(target: "guest", "{line}")));
        Self {
            shared: Arc::new(Shared {
                log,
                tap: OnceLock::new(),
                devices: Mutex::default(),
                state: Mutex::default(),
            }),
        }
    }

    /// A new reader. One made before the machine misses nothing.
    #[must_use]
    pub fn reader(&self, config: ReaderConfig) -> ConsoleReader {
        let mut state = self.shared.lock();
        state.last_reader += 1;
        let id = state.last_reader;
        state.readers.insert(id, Ring::new(config));
        ConsoleReader {
            shared: Arc::clone(&self.shared),
            id,
        }
    }

    /// The last of the output.
    #[must_use]
    pub fn log(&self) -> &Arc<ConsoleLog> {
        &self.shared.log
    }

    /// Has `tap` see all output; only the first call of this function counts.
    pub fn set_tap(&self, tap: ConsoleTap) {
        // An error would say that there is one already.
        let _ = self.shared.tap.set(tap);
    }

    /// Types `bytes` and tells how many were taken; the rest did not fit.
    #[must_use]
    pub fn input(&self, bytes: &[u8]) -> usize {
        let taken = self.shared.lock().type_in(bytes);
        self.shared.announce_input(taken);
        taken
    }

    /// Types `bytes`, at least one of them. Any number of tasks may wait for room.
    ///
    /// # Errors
    /// `BrokenPipe` when the machine has ended.
    pub fn poll_input(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.shared.lock();
        if state.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let taken = state.type_in(bytes);
        if taken == 0 && !bytes.is_empty() {
            if !state
                .typists
                .iter()
                .any(|waker| waker.will_wake(cx.waker()))
            {
                state.typists.push(cx.waker().clone());
            }
            return Poll::Pending;
        }
        drop(state);
        self.shared.announce_input(taken);
        Poll::Ready(Ok(taken))
    }

    /// Has `device` told of room and input from now on, as long as it lives.
    pub fn attach(&self, device: Weak<dyn ConsoleDevice>) {
        let mut devices = self.shared.lock_devices();
        devices.retain(|device| device.strong_count() > 0);
        devices.push(device);
    }

    /// Prints as much of `bytes` as every reader has room for, and tells how much that was.
    /// After less than all, the device is told of room.
    pub fn offer(&self, bytes: &[u8]) -> usize {
        let mut state = self.shared.lock();
        let room = state.readers.values().map(Ring::room).min();
        let count = bytes.len().min(room.unwrap_or(usize::MAX));
        state.stalled |= count < bytes.len();
        self.print(state, bytes.get(..count).unwrap_or_default());
        count
    }

    /// Prints `bytes` whether there is room or not.
    pub fn force(&self, bytes: &[u8]) {
        self.print(self.shared.lock(), bytes);
    }

    fn print(&self, mut state: MutexGuard<'_, State>, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        // Under the lock, lest two devices mix their output in one order here and another there.
        self.shared.log.put(bytes);
        let readers = state.readers.values_mut();
        let wakers: Vec<Waker> = readers.filter_map(|ring| ring.push(bytes)).collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        if let Some(tap) = self.shared.tap.get() {
            bytes.iter().for_each(|&byte| tap(byte));
        }
    }

    /// Takes what was typed, up to `to.len()` bytes.
    #[must_use]
    pub fn take_input(&self, to: &mut [u8]) -> usize {
        let mut state = self.shared.lock();
        let count = to.len().min(state.input.len());
        for (to, from) in to.iter_mut().zip(state.input.drain(..count)) {
            *to = from;
        }
        let typists = if count > 0 {
            std::mem::take(&mut state.typists)
        } else {
            Vec::new()
        };
        drop(state);
        typists.into_iter().for_each(Waker::wake);
        count
    }

    /// What was typed and waits, for a saved state.
    #[must_use]
    pub fn waiting_input(&self) -> Vec<u8> {
        self.shared.lock().input.iter().copied().collect()
    }

    /// The machine was reset: what was typed for the boot before is lost.
    pub fn begin_boot(&self) {
        self.shared.log.begin_boot();
        let mut state = self.shared.lock();
        state.input.clear();
        let typists = std::mem::take(&mut state.typists);
        drop(state);
        typists.into_iter().for_each(Waker::wake);
    }

    /// The machine has ended: readers come to an end behind what they have not read, nothing can
    /// be typed.
    pub fn close(&self) {
        let mut state = self.shared.lock();
        state.closed = true;
        let mut wakers = std::mem::take(&mut state.typists);
        wakers.extend(state.readers.values_mut().filter_map(Ring::take_waker));
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl State {
    fn type_in(&mut self, bytes: &[u8]) -> usize {
        if self.closed {
            return 0;
        }
        let count = bytes
            .len()
            .min(INPUT_CAPACITY.saturating_sub(self.input.len()));
        self.input.extend(bytes.iter().take(count));
        count
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_devices(&self) -> MutexGuard<'_, Vec<Weak<dyn ConsoleDevice>>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn living_devices(&self) -> Vec<Arc<dyn ConsoleDevice>> {
        let devices = self.lock_devices();
        devices.iter().filter_map(Weak::upgrade).collect()
    }

    fn announce_input(&self, taken: usize) {
        if taken > 0 {
            for device in self.living_devices() {
                device.input_ready();
            }
        }
    }

    fn announce_room(&self, mut state: MutexGuard<'_, State>) {
        let stalled = std::mem::take(&mut state.stalled);
        drop(state);
        if stalled {
            for device in self.living_devices() {
                device.output_room();
            }
        }
    }

    pub(super) fn read(&self, id: u64, to: &mut [u8]) -> usize {
        let mut state = self.lock();
        let count = state.readers.get_mut(&id).map_or(0, |ring| ring.read(to));
        if count > 0 {
            self.announce_room(state);
        }
        count
    }

    pub(super) fn poll_read(&self, id: u64, cx: &Context<'_>, to: &mut [u8]) -> Poll<usize> {
        let mut state = self.lock();
        let closed = state.closed;
        let Some(ring) = state.readers.get_mut(&id) else {
            return Poll::Ready(0);
        };
        let count = ring.read(to);
        if count > 0 {
            self.announce_room(state);
            return Poll::Ready(count);
        }
        if closed || to.is_empty() {
            return Poll::Ready(0);
        }
        ring.wait(cx);
        Poll::Pending
    }

    pub(super) fn lost(&self, id: u64) -> u64 {
        self.lock().readers.get(&id).map_or(0, Ring::lost)
    }

    pub(super) fn remove(&self, id: u64) {
        let mut state = self.lock();
        state.readers.remove(&id);
        self.announce_room(state);
    }
}
