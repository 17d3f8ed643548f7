//! One connection: what its two ends have said, what waits in between, and what to say next.

use std::io::{self, Read, Write};
use std::task::{Context, Poll, Waker};

use super::byte_queue::ByteQueue;
use super::credit::{Credit, CreditViolation};
use super::packet::{Op, Ports, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// Bytes a writer on the host can be ahead of the guest.
pub const SEND_BUFFER_LEN: usize = 256 * 1024;
/// A writer that filled the buffer is woken when this much of it is free again, so that it is
/// not woken for every packet.
const SEND_WAKE_LEN: usize = SEND_BUFFER_LEN / 2;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The host asked, the guest has not answered.
    Connecting,
    /// Both agreed.
    Open,
    /// Over; nothing goes to the guest any more. Received data can still be read.
    Closed(Ending),
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest refused it.
    Refused,
    /// One side broke it off.
    Reset,
    /// The guest closed it in order.
    Finished,
}

/// What became of a packet from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// It was in order.
    Accepted,
    /// The guest closed the connection in order, and waits for our reset.
    Finished,
    /// It was not in order: the connection has to be broken off.
    Violation,
}

/// A packet that a connection has to send, but for its addresses and counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// What it is for.
    pub op: Op,
    /// Of a [`Op::Shutdown`], what is shut down.
    pub flags: u32,
    /// Bytes of data.
    pub len: u32,
}

impl Outgoing {
    fn control(op: Op) -> Self {
        Self {
            op,
            flags: 0,
            len: 0,
        }
    }
}

/// See the module.
pub struct Connection {
    pub(super) ports: Ports,
    pub(super) phase: Phase,
    pub(super) credit: Credit,
    /// A stream or a connect on the host refers to this connection.
    pub(super) held: bool,
    /// It stands in the muxer's line of those with something to send.
    pub(super) scheduled: bool,
    inbound: ByteQueue,
    outbound: ByteQueue,
    /// The request or the response that opens the connection is still to be sent.
    opening: Option<Op>,
    /// The request went out: the guest knows of the connection.
    known_to_guest: bool,
    /// `SHUTDOWN_*` flags the guest has sent.
    guest_shutdown: u32,
    /// `SHUTDOWN_*` flags the guest was sent.
    sent_shutdown: u32,
    write_shutdown: bool,
    credit_update_asked: bool,
    credit_requested: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Connection {
    /// A connection the host asks for.
    pub fn to_guest(ports: Ports) -> Self {
        Self::new(ports, Phase::Connecting, Op::Request)
    }

    /// A connection the guest asked for and gets.
    pub fn from_guest(ports: Ports) -> Self {
        Self::new(ports, Phase::Open, Op::Response)
    }

    fn new(ports: Ports, phase: Phase, opening: Op) -> Self {
        Self {
            ports,
            phase,
            credit: Credit::default(),
            held: true,
            scheduled: false,
            inbound: ByteQueue::default(),
            outbound: ByteQueue::default(),
            opening: Some(opening),
            known_to_guest: opening == Op::Response,
            guest_shutdown: 0,
            sent_shutdown: 0,
            write_shutdown: false,
            credit_update_asked: false,
            credit_requested: false,
            reader: None,
            writer: None,
        }
    }

    /// The packet to send next, with up to `room` bytes of data.
    pub fn outgoing(&self, room: usize) -> Option<Outgoing> {
        if let Some(op) = self.opening {
            return Some(Outgoing::control(op));
        }
        if self.phase != Phase::Open {
            return None;
        }
        let available = self.credit.available();
        let len = self.outbound.len().min(room);
        let len = u32::try_from(len).unwrap_or(u32::MAX).min(available);
        if len > 0 {
            return Some(Outgoing {
                op: Op::Data,
                flags: 0,
                len,
            });
        }
        let flags = self.shutdown_due();
        if flags & !self.sent_shutdown != 0 {
            return Some(Outgoing {
                op: Op::Shutdown,
                flags,
                len: 0,
            });
        }
        if self.credit_update_asked || self.credit.update_due() {
            return Some(Outgoing::control(Op::CreditUpdate));
        }
        let starved = !self.outbound.is_empty() && available == 0;
        (starved && !self.credit_requested).then(|| Outgoing::control(Op::CreditRequest))
    }

    /// `packet`, which [`Self::outgoing`] gave, is on its way; its data goes to `sink`.
    /// Gives `buf_alloc` and `fwd_cnt` for it.
    ///
    /// # Errors
    /// What `sink` answers.
    pub fn send(&mut self, packet: Outgoing, sink: &mut impl Write) -> io::Result<(u32, u32)> {
        match packet.op {
            Op::Request | Op::Response => {
                self.opening = None;
                self.known_to_guest = true;
            }
            Op::Data => {
                let len = usize::try_from(packet.len).unwrap_or(usize::MAX);
                self.outbound.drain_to(sink, len)?;
                self.credit.spend(packet.len);
            }
            Op::Shutdown => self.sent_shutdown |= packet.flags,
            Op::CreditRequest => self.credit_requested = true,
            Op::CreditUpdate | Op::Reset => {}
        }
        // Every packet carries the counters.
        self.credit_update_asked = false;
        Ok(self.credit.advertise())
    }

    /// The writer, when enough of what it wrote is gone.
    pub fn writer_to_wake(&mut self) -> Option<Waker> {
        if self.outbound.len() <= SEND_WAKE_LEN {
            self.writer.take()
        } else {
            None
        }
    }

    /// Everybody who waits on the connection.
    pub fn all_to_wake(&mut self) -> impl Iterator<Item = Waker> + use<> {
        [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
    }

    /// The reader, if it waits.
    pub fn reader_to_wake(&mut self) -> Option<Waker> {
        self.reader.take()
    }

    /// Takes in a packet from the guest; `len` bytes of data follow in `data`.
    pub fn receive(&mut self, op: Op, flags: u32, len: u32, data: &mut impl Read) -> Received {
        match (op, self.phase) {
            (Op::Response, Phase::Connecting) if self.opening.is_none() => {
                self.phase = Phase::Open;
                Received::Accepted
            }
            (Op::Data, Phase::Open) if self.guest_shutdown & SHUTDOWN_SEND == 0 && self.held => {
                self.receive_data(len, data)
            }
            (Op::Shutdown, Phase::Open) => self.receive_shutdown(flags),
            (Op::CreditRequest, Phase::Open) => {
                self.credit_update_asked = true;
                Received::Accepted
            }
            // Its counters have been taken over already.
            (Op::CreditUpdate, Phase::Open) => Received::Accepted,
            _ => Received::Violation,
        }
    }

    /// Takes over the counters of a packet from the guest.
    ///
    /// # Errors
    /// [`CreditViolation`].
    pub fn update_credit(&mut self, buf_alloc: u32, fwd_cnt: u32) -> Result<(), CreditViolation> {
        self.credit.update(buf_alloc, fwd_cnt)?;
        if self.credit.available() > 0 {
            self.credit_requested = false;
        }
        Ok(())
    }

    fn receive_data(&mut self, len: u32, data: &mut impl Read) -> Received {
        if self.credit.receive(len).is_err() {
            return Received::Violation;
        }
        let count = usize::try_from(len).unwrap_or(usize::MAX);
        match self.inbound.fill_from(data, count) {
            Ok(()) => Received::Accepted,
            Err(_) => Received::Violation,
        }
    }

    fn receive_shutdown(&mut self, flags: u32) -> Received {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            self.outbound.clear();
        }
        if self.guest_shutdown == SHUTDOWN_BOTH {
            Received::Finished
        } else {
            Received::Accepted
        }
    }

    /// The flags the guest should know of by now.
    fn shutdown_due(&self) -> u32 {
        if !self.outbound.is_empty() {
            0
        } else if !self.held {
            SHUTDOWN_BOTH
        } else if self.write_shutdown {
            SHUTDOWN_SEND
        } else {
            0
        }
    }

    /// The connection is over; what was received stays readable.
    pub fn close(&mut self, ending: Ending) {
        self.phase = Phase::Closed(ending);
        self.opening = None;
        self.outbound.clear();
    }

    /// Whether the guest has to be told when the host breaks off now.
    pub fn is_known_to_guest(&self) -> bool {
        self.known_to_guest && !matches!(self.phase, Phase::Closed(_))
    }

    /// Bytes of received data that wait for a reader.
    pub fn unread_len(&self) -> usize {
        self.inbound.len()
    }

    /// Ready when the guest has answered.
    pub fn poll_connected(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.phase {
            Phase::Connecting => {
                self.writer = Some(cx.waker().clone());
                Poll::Pending
            }
            Phase::Open | Phase::Closed(Ending::Finished) => Poll::Ready(Ok(())),
            Phase::Closed(Ending::Refused) => {
                Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into()))
            }
            Phase::Closed(Ending::Reset) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }

    /// Moves received data to `buffer`; zero bytes mean that no more will come.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        mut buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.inbound.is_empty() {
            return self.poll_end(cx);
        }
        let limit = buffer.len();
        let moved = self.inbound.drain_to(&mut buffer, limit)?;
        self.credit
            .consume(u32::try_from(moved).unwrap_or(u32::MAX));
        Poll::Ready(Ok(moved))
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.guest_shutdown & SHUTDOWN_SEND != 0 {
            return Poll::Ready(Ok(0));
        }
        match self.phase {
            Phase::Connecting | Phase::Open => {
                self.reader = Some(cx.waker().clone());
                Poll::Pending
            }
            Phase::Closed(Ending::Finished) => Poll::Ready(Ok(0)),
            Phase::Closed(Ending::Refused | Ending::Reset) => {
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
        }
    }

    /// Takes over as much of `data` as there is space for.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, mut data: &[u8]) -> Poll<io::Result<usize>> {
        if self.write_shutdown || self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if let Phase::Closed(_) = self.phase {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let count = data
            .len()
            .min(SEND_BUFFER_LEN.saturating_sub(self.outbound.len()));
        if count == 0 {
            self.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.outbound.fill_from(&mut data, count)?;
        Poll::Ready(Ok(count))
    }

    /// No more will be written: the guest hears of it after what was written.
    pub fn shutdown_write(&mut self) {
        self.write_shutdown = true;
    }
}
