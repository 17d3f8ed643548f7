//! The host's end of a named port.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::PortName;
use super::shared::Shared;

/// Bytes on their way in each direction of a port at most.
pub const PORT_BUFFER_LEN: usize = 64 << 10;

/// A byte stream to whatever program has opened the port in the guest. It lasts as long as the
/// machine: programs, drivers and boots come and go at the other end. One task may wait for
/// reading, one for writing and one for the port to be opened.
pub struct ConsolePort {
    shared: Arc<Shared>,
    port: Arc<Port>,
}

impl ConsolePort {
    pub(super) fn new(shared: Arc<Shared>, port: Arc<Port>) -> Self {
        Self { shared, port }
    }

    /// The port's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.port.name.as_str()
    }

    /// Whether a program in the guest has the port open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.port.lock().open
    }

    /// Waits for a program in the guest to open the port.
    ///
    /// # Errors
    /// `BrokenPipe` when the machine is gone.
    pub fn poll_open(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut port = self.port.lock();
        match port.check_open() {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                port.opener = Some(cx.waker().clone());
                Poll::Pending
            }
            open => Poll::Ready(open),
        }
    }

    /// Reads up to `to.len()` bytes, at least one.
    ///
    /// # Errors
    /// `NotConnected`, after all that was received, when no program in the guest has the port
    /// open, `BrokenPipe` when the machine is gone.
    pub fn poll_read(&self, cx: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut port = self.port.lock();
        let count = take(&mut port.received, to);
        if count > 0 {
            drop(port);
            // The driver may wait for the room.
            self.shared.wake_handler();
            return Poll::Ready(Ok(count));
        }
        port.check_open()?;
        port.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Takes over some of `data`, at least a byte, for the guest.
    ///
    /// # Errors
    /// `NotConnected` when no program in the guest has the port open, `BrokenPipe` when the
    /// machine is gone.
    pub fn poll_write(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut port = self.port.lock();
        port.check_open()?;
        let count = data.len().min(room(&port.sending));
        if count == 0 {
            port.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        port.sending.extend(data.iter().take(count));
        drop(port);
        self.shared.wake_handler();
        Poll::Ready(Ok(count))
    }
}

/// A named port between its two ends.
pub(super) struct Port {
    pub(super) name: PortName,
    state: Mutex<PortState>,
}

#[derive(Default)]
struct PortState {
    open: bool,
    gone: bool,
    /// From the guest.
    received: VecDeque<u8>,
    /// To the guest.
    sending: VecDeque<u8>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    opener: Option<Waker>,
}

impl PortState {
    fn check_open(&self) -> io::Result<()> {
        match (self.gone, self.open) {
            (true, _) => Err(io::ErrorKind::BrokenPipe.into()),
            (false, true) => Ok(()),
            (false, false) => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn take_wakers(&mut self) -> Vec<Waker> {
        let wakers = [&mut self.reader, &mut self.writer, &mut self.opener];
        wakers.into_iter().filter_map(Option::take).collect()
    }
}

/// What a saved machine keeps of a port.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct SavedPort {
    /// Whether a program in the guest has it open.
    #[prost(bool, tag = "1")]
    open: bool,
    /// From the guest.
    #[prost(bytes = "vec", tag = "2")]
    received: Vec<u8>,
    /// To the guest.
    #[prost(bytes = "vec", tag = "3")]
    sending: Vec<u8>,
}

impl Port {
    pub(super) fn new(name: PortName) -> Self {
        Self {
            name,
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, PortState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A program has opened the port or closed it. What one has not read is not for the next, and
    /// what one has written is not of the next.
    pub(super) fn set_open(&self, open: bool) {
        let mut state = self.lock();
        if state.open == open {
            return;
        }
        state.open = open;
        state.sending.clear();
        if open {
            state.received.clear();
        }
        let wakers = state.take_wakers();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The machine is gone.
    pub(super) fn shut(&self) {
        let mut state = self.lock();
        state.gone = true;
        let wakers = state.take_wakers();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Takes bytes of the guest and tells how many. A guest need not say that it has the port
    /// open before it writes.
    pub(super) fn receive(&self, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        let count = bytes.len().min(room(&state.received));
        state.received.extend(bytes.iter().take(count));
        let waker = state.reader.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        count
    }

    /// Gives bytes to the guest and tells how many.
    pub(super) fn send(&self, to: &mut [u8]) -> usize {
        let mut state = self.lock();
        let count = take(&mut state.sending, to);
        let waker = (count > 0).then(|| state.writer.take()).flatten();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        count
    }

    pub(super) fn save(&self) -> SavedPort {
        let state = self.lock();
        SavedPort {
            open: state.open,
            received: state.received.iter().copied().collect(),
            sending: state.sending.iter().copied().collect(),
        }
    }

    pub(super) fn restore(&self, saved: SavedPort) {
        self.set_open(saved.open);
        let mut state = self.lock();
        state.received = saved.received.into_iter().take(PORT_BUFFER_LEN).collect();
        state.sending = saved.sending.into_iter().take(PORT_BUFFER_LEN).collect();
    }
}

fn room(queue: &VecDeque<u8>) -> usize {
    PORT_BUFFER_LEN.saturating_sub(queue.len())
}

/// Takes as much as there is and fits.
fn take(from: &mut VecDeque<u8>, to: &mut [u8]) -> usize {
    let count = to.len().min(from.len());
    for (to, from) in to.iter_mut().zip(from.drain(..count)) {
        *to = from;
    }
    count
}
