//! The host's side: dialling the guest, and awaiting the one connection the guest opens.
//!
//! Runtime-agnostic: everything waits with the wakers of [`std::task`].

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use vmm_sys_util::eventfd::EventFd;

use super::connection::Connection;
use super::muxer::{ConnectionId, Muxer, VsockCounters};
use super::stream::VsockStream;

/// The muxer with what both sides need around it: tasks of the host, and the handler on the
/// `io` thread.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Wakes the handler.
    pub(super) kick: EventFd,
}

struct State {
    muxer: Muxer,
    /// The handler has nothing to do and waits for a kick. Otherwise it will look at the
    /// muxer anyway, or there is none.
    handler_idle: bool,
}

impl Shared {
    pub(super) fn new(muxer: Muxer) -> io::Result<Self> {
        let kick = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self {
            state: Mutex::new(State {
                muxer,
                handler_idle: false,
            }),
            kick,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `act` work for the host; wakes the handler if that gave it something to do.
    pub(super) fn as_host<T>(&self, act: impl FnOnce(&mut Muxer) -> T) -> T {
        let mut state = self.lock();
        let result = act(&mut state.muxer);
        let kicks = state.handler_idle && state.muxer.has_packets();
        if kicks {
            state.handler_idle = false;
        }
        let wakers = state.muxer.take_wakers();
        drop(state);
        if kicks {
            // Full only after 2^64 - 1 kicks that nobody took.
            let _ = self.kick.write(1);
        }
        for waker in wakers {
            waker.wake();
        }
        result
    }

    /// Lets `act` work for the device; it tells whether the handler is idle afterwards.
    pub(super) fn as_device<T>(&self, act: impl FnOnce(&mut Muxer) -> (T, bool)) -> T {
        let mut state = self.lock();
        let (result, idle) = act(&mut state.muxer);
        state.handler_idle = idle;
        let wakers = state.muxer.take_wakers();
        drop(state);
        for waker in wakers {
            waker.wake();
        }
        result
    }

    /// Lets the host's end of a connection act.
    pub(super) fn on<T>(
        &self,
        id: ConnectionId,
        act: impl FnOnce(&mut Connection) -> T,
    ) -> io::Result<T> {
        self.as_host(|muxer| muxer.on(id, act))
    }
}

/// Opens connections to one guest. Clones share it; it outlives the device, and then says
/// that the guest is not connected.
#[derive(Clone)]
pub struct VsockHost {
    shared: Arc<Shared>,
}

impl VsockHost {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Dials the guest's `port`. The request is placed at once, and waits in line while the
    /// guest has no driver; there is no timeout, dropping the future cancels.
    ///
    /// The future's errors: `ConnectionRefused` when nobody listens there, `ConnectionReset`
    /// when the guest's driver went away meanwhile, `NotConnected` when the device is gone,
    /// `QuotaExceeded` with too many connections ([`super::MAX_CONNECTIONS`]).
    pub fn connect(&self, port: u32) -> Connect {
        let connecting = self.shared.as_host(|muxer| muxer.connect(port));
        Connect {
            dialled: Some(connecting.map(|id| VsockStream::new(Arc::clone(&self.shared), id))),
        }
    }

    /// Awaits the one connection that the guest may open each time its driver starts, to the
    /// ready port. A further call after it was taken awaits that of the next start. One task
    /// awaits at a time.
    ///
    /// The future's error: `NotConnected` when the device is gone.
    pub fn accept_ready(&self) -> AcceptReady {
        AcceptReady {
            shared: Arc::clone(&self.shared),
        }
    }

    /// The guest has ended: every connection ends with a reset, and none can be opened any more.
    pub fn close(&self) {
        self.shared.as_host(Muxer::shut);
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> VsockCounters {
        self.shared.lock().muxer.counters
    }
}

/// The future of [`VsockHost::connect`].
#[must_use = "dropping it cancels the connection"]
pub struct Connect {
    dialled: Option<io::Result<VsockStream>>,
}

impl Future for Connect {
    type Output = io::Result<VsockStream>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(Ok(stream)) = &self.dialled
            && stream.poll_connected(cx)?.is_pending()
        {
            return Poll::Pending;
        }
        // Polled again after it was ready, it has nothing to give.
        Poll::Ready(
            self.dialled
                .take()
                .unwrap_or_else(|| Err(io::ErrorKind::NotConnected.into())),
        )
    }
}

/// The future of [`VsockHost::accept_ready`].
#[must_use = "futures do nothing unless polled"]
pub struct AcceptReady {
    shared: Arc<Shared>,
}

impl Future for AcceptReady {
    type Output = io::Result<VsockStream>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let accepted = self.shared.as_host(|muxer| muxer.poll_ready(cx));
        accepted.map_ok(|id| VsockStream::new(Arc::clone(&self.shared), id))
    }
}
