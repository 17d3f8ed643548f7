//! A place for each processor that a machine can have, and what it takes to start, bind,
//! interrupt and end those that there are.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use libc::pthread_t;

use super::cell::VcpuCell;
use super::pinning::{self, PinError};
use super::thread::{self as vcpu_thread, VcpuContext, kick_signal};

/// The place of one processor. KVM cannot forget a processor: its cell stays for the time it is
/// plugged again.
#[derive(Default)]
struct Seat {
    cell: OnceLock<VcpuCell>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// All processors' cells and threads.
pub(crate) struct VcpuThreads {
    seats: Vec<Seat>,
    pinning: Mutex<Vec<Vec<usize>>>,
}

impl Seat {
    fn thread(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kick(&self) {
        if let Some(cell) = self.cell.get() {
            cell.set_immediate_exit(true);
        }
        if let Some(handle) = self.thread().as_ref() {
            // SAFETY: The thread has not been joined (its handle is still here, under the
            // lock), so that its id is valid, and the signal has a handler.
            unsafe { libc::pthread_kill(handle.as_pthread_t(), kick_signal()) };
        }
    }

    /// Waits for the thread's end, unless it is the calling one.
    fn join(&self) {
        let handle = self.thread().take();
        if let Some(handle) = handle
            && handle.thread().id() != thread::current().id()
        {
            // A panic was caught and reported inside the thread.
            let _ = handle.join();
        }
    }
}

impl VcpuThreads {
    /// Places for `possible` processors; the first are `cells`.
    pub(crate) fn new(cells: Vec<VcpuCell>, possible: u8) -> Self {
        let mut cells = cells.into_iter();
        let seat = |_| {
            let seat = Seat::default();
            if let Some(cell) = cells.next() {
                seat.cell.get_or_init(|| cell);
            }
            seat
        };
        Self {
            seats: (0..possible).map(seat).collect(),
            pinning: Mutex::default(),
        }
    }

    /// All processors that were ever made, by number.
    pub(crate) fn cells(&self) -> Vec<&VcpuCell> {
        self.seats
            .iter()
            .filter_map(|seat| seat.cell.get())
            .collect()
    }

    /// The processor `index`, if it was ever made.
    pub(crate) fn cell(&self, index: usize) -> Option<&VcpuCell> {
        self.seats.get(index)?.cell.get()
    }

    /// Puts a new processor in its place, if it has one that is free.
    pub(crate) fn add(&self, index: usize, cell: VcpuCell) {
        if let Some(seat) = self.seats.get(index) {
            seat.cell.get_or_init(|| cell);
        }
    }

    /// Waits for the end of a processor's thread that was retired, if there is one. Parked for a
    /// reset, it ends after that: whoever waits must not be counted among those who park.
    pub(crate) fn wait_retired(&self, index: usize) {
        if let Some(seat) = self.seats.get(index) {
            seat.join();
        }
    }

    /// Starts the thread of a processor that has none; it parks.
    pub(crate) fn spawn(&self, context: &Arc<VcpuContext>, index: usize) -> io::Result<()> {
        let no_seat = || io::Error::from(io::ErrorKind::NotFound);
        let seat = self.seats.get(index).ok_or_else(no_seat)?;
        seat.cell.get().ok_or_else(no_seat)?.set_retired(false);
        let mut place = seat.thread();
        *place = Some(vcpu_thread::spawn(context, index)?);
        Ok(())
    }

    /// Lets a processor's thread end soon; the machine goes on.
    pub(crate) fn retire(&self, index: usize) {
        let Some(seat) = self.seats.get(index) else {
            return;
        };
        if let Some(cell) = seat.cell.get() {
            cell.set_retired(true);
        }
        seat.kick();
    }

    /// Lets every processor run on its own host CPUs only, by `host_cpus`; those beyond the list, or
    /// without any, run wherever this process may. Those that are plugged later follow.
    pub(crate) fn pin(&self, host_cpus: &[Vec<usize>]) -> Result<(), PinError> {
        *self.pinning() = host_cpus.to_vec();
        let bound = |(index, seat): (usize, &Seat)| match host_cpus.get(index) {
            Some(cpus) if !cpus.is_empty() => seat.bind(index, cpus),
            _ => seat.release(index),
        };
        self.seats.iter().enumerate().try_for_each(bound)
    }

    /// Binds one processor as [`Self::pin`] wants it.
    pub(crate) fn pin_one(&self, index: usize) -> Result<(), PinError> {
        let cpus = self.pinning().get(index).cloned().unwrap_or_default();
        match self.seats.get(index) {
            Some(seat) if !cpus.is_empty() => seat.bind(index, &cpus),
            _ => Ok(()),
        }
    }

    fn pinning(&self) -> MutexGuard<'_, Vec<Vec<usize>>> {
        self.pinning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes every processor leave guest mode soon, or not enter it at all.
    pub(crate) fn kick(&self) {
        self.seats.iter().for_each(Seat::kick);
    }

    /// Waits for all threads but the calling one.
    pub(crate) fn join(&self) {
        self.seats.iter().for_each(Seat::join);
    }
}

impl Seat {
    /// Does `act` with its thread, if that is to go on: for one that has ended, the C library would
    /// take the calling one.
    fn with_thread(&self, act: impl FnOnce(pthread_t) -> io::Result<()>) -> io::Result<()> {
        // The lock keeps the thread from being joined.
        let thread = self.thread();
        let is_retired = self.cell.get().is_none_or(VcpuCell::is_retired);
        match thread.as_ref() {
            Some(handle) if !is_retired && !handle.is_finished() => act(handle.as_pthread_t()),
            _ => Ok(()),
        }
    }

    fn bind(&self, vcpu: usize, cpus: &[usize]) -> Result<(), PinError> {
        let done = self.with_thread(|thread| pinning::bind(thread, cpus));
        let cpus = cpus.to_vec();
        done.map_err(|source| PinError { vcpu, cpus, source })
    }

    fn release(&self, vcpu: usize) -> Result<(), PinError> {
        let done = self.with_thread(pinning::release);
        let cpus = Vec::new();
        done.map_err(|source| PinError { vcpu, cpus, source })
    }
}
