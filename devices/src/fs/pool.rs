//! The threads that serve a file system's requests.
//!
//! They live as long as the device, not as its sessions: activation happens on vCPU threads,
//! whose system call filters a new thread would inherit. All wait on one epoll file; a
//! notification wakes one of them, which then takes requests until there are none.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::credentials::prepare_thread;
use super::session::Session;
use crate::virtio::QueueHandle;

/// What is run on each thread before it serves: system call filter, capabilities, namespaces.
pub type ThreadStart = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// The event of the stop file; queues have their index.
const STOP: u64 = u64::MAX;

/// The threads, which end with it.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    epoll: Epoll,
    /// Readable from the moment the threads are to end, for all of them.
    stop: EventFd,
    slot: Mutex<Slot>,
    /// Signalled when the last worker has left a session that was taken out.
    left: Condvar,
    /// Workers that wait for an event, or are about to.
    idle: AtomicUsize,
}

/// What is being served.
#[derive(Default)]
struct Slot {
    session: Option<Arc<Session>>,
    /// Workers inside it.
    serving: usize,
}

impl Pool {
    /// Starts `count` threads, `fs0` and so on, each with `on_start`.
    ///
    /// # Errors
    /// When the host has no thread or descriptor left, or what `on_start` says.
    pub fn start(count: usize, on_start: &ThreadStart) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            epoll: Epoll::new()?,
            stop: EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?,
            slot: Mutex::default(),
            left: Condvar::new(),
            idle: AtomicUsize::new(0),
        });
        let event = EpollEvent::new(EventSet::IN, STOP);
        shared
            .epoll
            .ctl(ControlOperation::Add, shared.stop.as_raw_fd(), event)?;
        let mut pool = Self {
            shared,
            threads: Vec::with_capacity(count),
        };
        for index in 0..count {
            pool.threads
                .push(pool.start_thread(index, Arc::clone(on_start))?);
        }
        Ok(pool)
    }

    /// Starts a thread and waits until it is ready.
    fn start_thread(&self, index: usize, on_start: ThreadStart) -> io::Result<JoinHandle<()>> {
        let shared = Arc::clone(&self.shared);
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let thread = Builder::new().name(format!("fs{index}")).spawn(move || {
            let prepared = prepare_thread().and_then(|()| on_start());
            let failed = prepared.is_err();
            if ready.send(prepared).is_ok() && !failed {
                shared.work();
            }
        })?;
        match started.recv() {
            Ok(Ok(())) => Ok(thread),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other("the thread ended before it was ready")),
        }
    }

    /// Begins to serve; nothing may be served already.
    ///
    /// # Errors
    /// When a notification cannot be watched; then nothing is served.
    pub fn begin(&self, session: Session) -> io::Result<()> {
        let session = Arc::new(session);
        self.shared.lock().session = Some(Arc::clone(&session));
        let watched = session.for_each_queue(|queue| {
            self.shared.watch(queue)?;
            // Requests may be there already, of before a pause, announced to nobody now here.
            queue.notify.write(1)
        });
        drop(session);
        if watched.is_err() {
            self.end();
        }
        watched
    }

    /// Ends serving once the requests under way are finished, and gives the queues back; none
    /// when nothing was served.
    pub fn end(&self) -> Vec<QueueHandle> {
        let Some(session) = self.shared.lock().session.take() else {
            return Vec::new();
        };
        session.stop();
        // What is not watched, after begin failed, cannot be taken off.
        let _ = session.for_each_queue(|queue| {
            self.shared.unwatch(queue);
            Ok::<(), io::Error>(())
        });
        let mut slot = self.shared.lock();
        while slot.serving > 0 {
            slot = self
                .shared
                .left
                .wait(slot)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(slot);
        // No worker is left inside, so this reference is the last.
        Arc::into_inner(session)
            .map(Session::into_queues)
            .unwrap_or_default()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.end();
        // An eventfd that was never written takes a one.
        let _ = self.shared.stop.write(1);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Edge-triggered: each notification wakes one thread, and the counter need not be read.
    fn watch(&self, queue: &QueueHandle) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, queue.index.into());
        self.epoll
            .ctl(ControlOperation::Add, queue.notify.as_raw_fd(), event)
    }

    fn unwatch(&self, queue: &QueueHandle) {
        let fd = queue.notify.as_raw_fd();
        let _ = self
            .epoll
            .ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }

    /// A worker's life.
    fn work(&self) {
        self.idle.fetch_add(1, Ordering::AcqRel);
        loop {
            if let Some(session) = self.enter() {
                while let Some(request) = session.take(&self.idle) {
                    session.serve(request);
                    self.idle.fetch_add(1, Ordering::AcqRel);
                }
                self.leave(session);
            }
            if self.wait() == STOP {
                return;
            }
        }
    }

    fn enter(&self) -> Option<Arc<Session>> {
        let mut slot = self.lock();
        let session = slot.session.clone()?;
        slot.serving += 1;
        Some(session)
    }

    fn leave(&self, session: Arc<Session>) {
        drop(session);
        let mut slot = self.lock();
        slot.serving -= 1;
        if slot.serving == 0 {
            self.left.notify_all();
        }
    }

    /// Waits for an event and returns what it was of.
    fn wait(&self) -> u64 {
        let mut events = [EpollEvent::default()];
        loop {
            // Errors but for an interrupted call mean that the epoll file is none.
            match self.epoll.wait(-1, &mut events) {
                Ok(0) => {}
                Ok(_) => return events.first().map_or(STOP, EpollEvent::data),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return STOP,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
