//! The thread that serves devices whose work is short: one epoll loop for all of them.
//!
//! A device's [`Handler`] belongs to the loop's thread from [`EventLoop::attach`] to
//! [`EventLoop::detach`], so it needs no locks for its queues.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent};
use vmm_sys_util::eventfd::EventFd;

pub use vmm_sys_util::epoll::EventSet;

use crate::virtio::QueueHandle;

/// Events taken from the kernel at once; more only wait for the next round.
const BATCH: usize = 32;
/// What the kernel keeps of a thread's name (`TASK_COMM_LEN` without its NUL).
const MAX_NAME_LEN: usize = 15;
/// The handler number in an event's data that stands for the loop's own wake-up.
const WAKE: u32 = 0;

/// One file descriptor a handler waits for.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    /// The descriptor. The handler owns it and keeps it open as long as it is attached.
    pub fd: RawFd,
    /// The handler's own name for it, unique within the handler.
    pub token: u32,
    /// What to wait for; empty means nothing for now.
    pub events: EventSet,
}

/// A device's half that runs on the loop's thread.
pub trait Handler: Send {
    /// The descriptors to watch from the start.
    fn watch(&self) -> Vec<Watch>;
    /// The descriptor named `token` is ready. The work done here is bounded: the other
    /// devices of the loop wait meanwhile. Descriptors are level-triggered unless watched
    /// with [`EventSet::EDGE_TRIGGERED`].
    fn ready(&mut self, token: u32, events: EventSet, interest: &mut Interest<'_>);
    /// The handler was detached: waits on the loop's thread for what is in flight.
    fn stop(&mut self) {}
    /// Gives the queues back after the handler was taken off the loop.
    fn into_queues(self: Box<Self>) -> Vec<QueueHandle>;
    /// [`Self::ready`] panicked with `cause`. The handler is dropped next; a virtio device
    /// tells its driver that it needs a reset.
    fn panicked(&self, cause: &str);
}

/// What a handler's descriptors are watched for; the handler changes it while it runs.
pub struct Interest<'a> {
    epoll: &'a Epoll,
    handler: u32,
    watches: &'a mut Vec<Watch>,
}

impl Interest<'_> {
    /// Watches the descriptor named `token` for `events` from now on; for nothing, not even
    /// for hang-ups, when they are empty.
    ///
    /// # Errors
    /// `NotFound` for an unknown token, and what `epoll_ctl` answers.
    pub fn modify(&mut self, token: u32, events: EventSet) -> io::Result<()> {
        let watch = self.watches.iter_mut().find(|watch| watch.token == token);
        let watch = watch.ok_or(io::ErrorKind::NotFound)?;
        if watch.events == events {
            return Ok(());
        }
        // A descriptor registered for no events still reports errors and hang-ups, which a
        // level-triggered loop would spin on: it is taken out instead.
        let operation = match (watch.events.is_empty(), events.is_empty()) {
            (true, _) => ControlOperation::Add,
            (false, true) => ControlOperation::Delete,
            (false, false) => ControlOperation::Modify,
        };
        self.epoll
            .ctl(operation, watch.fd, event(self.handler, token, events))?;
        watch.events = events;
        Ok(())
    }
}

fn event(handler: u32, token: u32, events: EventSet) -> EpollEvent {
    EpollEvent::new(events, u64::from(handler) << 32 | u64::from(token))
}

/// A handler on the loop; what [`EventLoop::detach`] takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HandlerId(u32);

enum Command {
    Attach(Box<dyn Handler>, SyncSender<io::Result<HandlerId>>),
    Detach(HandlerId, SyncSender<Option<Box<dyn Handler>>>),
    Stop,
}

/// The handle of the loop's thread, which ends when the last clone is dropped.
#[derive(Clone)]
pub struct EventLoop {
    thread: Arc<LoopThread>,
}

struct LoopThread {
    commands: mpsc::Sender<Command>,
    wake: EventFd,
    join: Mutex<Option<JoinHandle<()>>>,
}

impl EventLoop {
    /// Starts a thread called `name` (at most 15 bytes). It first runs `on_start`, the place
    /// for a seccomp filter and dropped capabilities.
    ///
    /// # Errors
    /// `InvalidInput` for a long name, what `on_start` answers, or what the host says when
    /// the thread or its descriptors are not to be had.
    pub fn spawn(
        name: &str,
        on_start: Box<dyn FnOnce() -> io::Result<()> + Send>,
    ) -> io::Result<Self> {
        if name.len() > MAX_NAME_LEN {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let (commands, receiver) = mpsc::channel();
        let running = Loop::new(wake.try_clone()?, receiver)?;
        let (started, start) = mpsc::sync_channel(1);
        let join = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let outcome = on_start();
                let goes_on = outcome.is_ok();
                if started.send(outcome).is_ok() && goes_on {
                    running.run();
                }
            })?;
        start.recv().map_err(|_| stopped())??;
        let join = Mutex::new(Some(join));
        Ok(Self {
            thread: Arc::new(LoopThread {
                commands,
                wake,
                join,
            }),
        })
    }

    /// Hands `handler` to the loop and returns when its descriptors are watched.
    ///
    /// # Errors
    /// What `epoll_ctl` answers for one of its descriptors; the handler is dropped then.
    pub fn attach(&self, handler: Box<dyn Handler>) -> io::Result<HandlerId> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.thread.send(Command::Attach(handler, reply))?;
        answer.recv().map_err(|_| stopped())?
    }

    /// Takes a handler back, after the call of [`Handler::ready`] that may be running.
    /// `None` when it is not attached, or gone because it panicked.
    ///
    /// Must not be called from the loop's own thread, which would wait for itself.
    #[must_use]
    pub fn detach(&self, id: HandlerId) -> Option<Box<dyn Handler>> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.thread.send(Command::Detach(id, reply)).ok()?;
        answer.recv().ok()?
    }
}

impl LoopThread {
    fn send(&self, command: Command) -> io::Result<()> {
        self.commands.send(command).map_err(|_| stopped())?;
        self.wake.write(1)
    }
}

impl Drop for LoopThread {
    fn drop(&mut self) {
        // Fails only when the thread has already ended.
        let _ = self.send(Command::Stop);
        let join = self.join.get_mut().unwrap_or_else(PoisonError::into_inner);
        // A handler that owned the last clone drops it on the loop's thread, which then ends
        // by itself.
        if let Some(join) = join.take()
            && join.thread().id() != thread::current().id()
            && join.join().is_err()
        {
            tracing::error!("an event loop's thread panicked");
        }
    }
}

fn stopped() -> io::Error {
    io::Error::new(
        io::ErrorKind::BrokenPipe,
        "the event loop's thread has ended",
    )
}

struct Attached {
    handler: Box<dyn Handler>,
    watches: Vec<Watch>,
}

/// What lives on the thread.
struct Loop {
    epoll: Epoll,
    wake: EventFd,
    commands: Receiver<Command>,
    handlers: BTreeMap<u32, Attached>,
    last_id: u32,
}

impl Loop {
    fn new(wake: EventFd, commands: Receiver<Command>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.ctl(
            ControlOperation::Add,
            wake.as_raw_fd(),
            event(WAKE, 0, EventSet::IN),
        )?;
        Ok(Self {
            epoll,
            wake,
            commands,
            handlers: BTreeMap::new(),
            last_id: WAKE,
        })
    }

    fn run(mut self) {
        let mut events = [EpollEvent::default(); BATCH];
        loop {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "epoll_wait failed, the event loop ends");
                    break;
                }
            };
            for ready in events.iter().take(count) {
                let (handler, token) = split(ready.data());
                if handler != WAKE {
                    self.dispatch(handler, token, EventSet::from_bits_truncate(ready.events()));
                } else if !self.obey() {
                    return;
                }
            }
        }
    }

    /// Carries out what was asked for; `false` when the loop is to end.
    fn obey(&mut self) -> bool {
        // Only clears the counter; a failure means that it was clear.
        let _ = self.wake.read();
        while let Ok(command) = self.commands.try_recv() {
            // Whoever asked may have gone away; there is nobody to tell.
            match command {
                Command::Attach(handler, reply) => drop(reply.send(self.attach(handler))),
                Command::Detach(id, reply) => drop(reply.send(self.stop(id.0))),
                Command::Stop => return false,
            }
        }
        true
    }

    fn attach(&mut self, handler: Box<dyn Handler>) -> io::Result<HandlerId> {
        let id = self
            .last_id
            .checked_add(1)
            .ok_or(io::ErrorKind::QuotaExceeded)?;
        self.last_id = id;
        let watches = handler.watch();
        for (done, watch) in watches.iter().enumerate() {
            if watch.events.is_empty() {
                continue;
            }
            let event = event(id, watch.token, watch.events);
            if let Err(error) = self.epoll.ctl(ControlOperation::Add, watch.fd, event) {
                self.forget(watches.iter().take(done));
                return Err(error);
            }
        }
        self.handlers.insert(id, Attached { handler, watches });
        Ok(HandlerId(id))
    }

    /// Detaches a handler and lets it finish; `None` also when it panics.
    fn stop(&mut self, id: u32) -> Option<Box<dyn Handler>> {
        let mut handler = self.detach(id)?;
        match catch_unwind(AssertUnwindSafe(|| handler.stop())) {
            Ok(()) => Some(handler),
            Err(payload) => {
                bury(handler, panic_text(payload.as_ref()));
                None
            }
        }
    }

    fn detach(&mut self, id: u32) -> Option<Box<dyn Handler>> {
        let attached = self.handlers.remove(&id)?;
        self.forget(attached.watches.iter());
        Some(attached.handler)
    }

    fn forget<'a>(&self, watches: impl Iterator<Item = &'a Watch>) {
        for watch in watches.filter(|watch| !watch.events.is_empty()) {
            // Fails only when the handler has closed it, which takes it out as well.
            let _ = self
                .epoll
                .ctl(ControlOperation::Delete, watch.fd, EpollEvent::default());
        }
    }

    fn dispatch(&mut self, id: u32, token: u32, events: EventSet) {
        // The handler may have been detached earlier in this batch.
        let Some(Attached { handler, watches }) = self.handlers.get_mut(&id) else {
            return;
        };
        let mut interest = Interest {
            epoll: &self.epoll,
            handler: id,
            watches,
        };
        // The handler is not used again after a panic, so nothing sees a broken invariant.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            handler.ready(token, events, &mut interest)
        }));
        if let Err(payload) = outcome
            && let Some(handler) = self.detach(id)
        {
            bury(handler, panic_text(payload.as_ref()));
        }
    }
}

/// Drops a handler that panicked with `cause`, which the handler itself reports.
fn bury(handler: Box<dyn Handler>, cause: &str) {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        handler.panicked(cause);
        drop(handler);
    }));
    if outcome.is_err() {
        tracing::error!("a device's handler panicked again while it was dropped");
    }
}

fn split(data: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = data.to_be_bytes();
    (
        u32::from_be_bytes([a, b, c, d]),
        u32::from_be_bytes([e, f, g, h]),
    )
}

/// The message of a caught panic.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "unknown panic"
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    type Seen = mpsc::Sender<(u32, EventSet)>;

    struct Counter {
        fd: EventFd,
        seen: Seen,
        mute_after_first: bool,
        panics: bool,
        panicked: Arc<AtomicUsize>,
    }

    impl Handler for Counter {
        fn watch(&self) -> Vec<Watch> {
            vec![Watch {
                fd: self.fd.as_raw_fd(),
                token: 7,
                events: EventSet::IN,
            }]
        }
        fn ready(&mut self, token: u32, events: EventSet, interest: &mut Interest<'_>) {
            assert!(!self.panics, "told to panic");
            if self.mute_after_first {
                interest.modify(7, EventSet::empty()).unwrap();
                assert!(interest.modify(8, EventSet::IN).is_err());
            } else {
                self.fd.read().unwrap();
            }
            self.seen.send((token, events)).unwrap();
        }
        fn into_queues(self: Box<Self>) -> Vec<QueueHandle> {
            Vec::new()
        }
        fn panicked(&self, cause: &str) {
            assert_eq!(cause, "told to panic");
            self.panicked.fetch_add(1, Ordering::SeqCst);
        }
    }

    struct Fixture {
        events: EventLoop,
        kick: EventFd,
        seen: mpsc::Receiver<(u32, EventSet)>,
        panicked: Arc<AtomicUsize>,
        handler: Box<Counter>,
    }

    fn fixture(mute_after_first: bool, panics: bool) -> Fixture {
        let events = EventLoop::spawn("test-loop", Box::new(|| Ok(()))).unwrap();
        let kick = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let (sender, seen) = mpsc::channel();
        let panicked = Arc::new(AtomicUsize::new(0));
        let handler = Box::new(Counter {
            fd: kick.try_clone().unwrap(),
            seen: sender,
            mute_after_first,
            panics,
            panicked: Arc::clone(&panicked),
        });
        Fixture {
            events,
            kick,
            seen,
            panicked,
            handler,
        }
    }

    #[test]
    fn a_ready_descriptor_reaches_its_handler_until_it_is_detached() {
        let Fixture {
            events,
            kick,
            seen,
            handler,
            ..
        } = fixture(false, false);
        let id = events.attach(handler).unwrap();
        for _ in 0..3 {
            kick.write(1).unwrap();
            assert_eq!(seen.recv().unwrap(), (7, EventSet::IN));
        }
        assert!(events.detach(id).is_some());
        assert!(events.detach(id).is_none());
        kick.write(1).unwrap();
        assert!(seen.recv().is_err(), "the detached handler must not run");
    }

    #[test]
    fn a_muted_descriptor_is_not_reported_again() {
        let Fixture {
            events,
            kick,
            seen,
            handler,
            ..
        } = fixture(true, false);
        let id = events.attach(handler).unwrap();
        kick.write(1).unwrap();
        seen.recv().unwrap();
        kick.write(1).unwrap();
        // Detaching waits for the loop, which would have reported it again before.
        let handler = events.detach(id);
        assert!(seen.try_recv().is_err());
        drop(handler);
    }

    #[test]
    fn a_panicking_handler_is_told_and_dropped_and_the_loop_goes_on() {
        let Fixture {
            events,
            kick,
            seen,
            panicked,
            handler,
        } = fixture(false, true);
        let id = events.attach(handler).unwrap();
        kick.write(1).unwrap();
        assert!(seen.recv().is_err(), "dropped without a report");
        assert!(events.detach(id).is_none());
        assert_eq!(panicked.load(Ordering::SeqCst), 1);

        let other = fixture(false, false);
        events.attach(other.handler).unwrap();
        other.kick.write(1).unwrap();
        other.seen.recv().unwrap();
    }

    #[test]
    fn a_failing_start_a_long_name_and_a_bad_descriptor_are_errors() {
        let denied = || Err(io::ErrorKind::PermissionDenied.into());
        assert!(EventLoop::spawn("test-loop", Box::new(denied)).is_err());
        assert!(EventLoop::spawn("a-name-too-long-for-it", Box::new(|| Ok(()))).is_err());

        let Fixture {
            events, handler, ..
        } = fixture(false, false);
        let null = std::fs::File::open("/proc/self/status").unwrap();
        assert!(
            events
                .attach(Box::new(Fixed {
                    fd: null.as_raw_fd()
                }))
                .is_err()
        );
        events.attach(handler).unwrap();
    }

    /// Watches a descriptor that epoll refuses.
    struct Fixed {
        fd: RawFd,
    }

    impl Handler for Fixed {
        fn watch(&self) -> Vec<Watch> {
            vec![Watch {
                fd: self.fd,
                token: 0,
                events: EventSet::IN,
            }]
        }
        fn ready(&mut self, _: u32, _: EventSet, _: &mut Interest<'_>) {}
        fn into_queues(self: Box<Self>) -> Vec<QueueHandle> {
            Vec::new()
        }
        fn panicked(&self, _: &str) {}
    }

    #[test]
    fn dropping_the_last_clone_drops_the_handlers() {
        let Fixture {
            events,
            seen,
            handler,
            ..
        } = fixture(false, false);
        events.attach(handler).unwrap();
        drop(events.clone());
        drop(events);
        assert!(seen.recv().is_err());
    }
}
