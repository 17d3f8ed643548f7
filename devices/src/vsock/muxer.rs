//! All connections of a guest: a state machine that takes packets in and gives packets out.
//!
//! It knows no queues and no threads: [`super::handler`] moves its packets, and
//! [`super::host`] puts it behind a lock. The guest opens exactly one connection, to the ready
//! port; everything else is opened by the host.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::mem;
use std::task::{Context, Poll, Waker};

use super::connection::{Connection, Ending, Phase, Received};
use super::packet::{HOST_CID, Header, Op, Ports, TYPE_STREAM};

/// Connections at a time. A pod's containers and execs need three each; the bound keeps what a
/// guest can make us hold (a receive window each) within 256 MiB.
pub const MAX_CONNECTIONS: usize = 1024;
/// Resets that wait for receive buffers of the guest; with more, no packets of it are taken in
/// until some are sent (virtio 1.2, 5.10.6.2).
const MAX_RESETS: usize = 256;
/// The host dials from ports of this range, away from any that means something.
const FIRST_LOCAL_PORT: u32 = 1 << 30;

/// Names a connection for as long as the host refers to it, also when its ports are reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(u64);

/// What happened so far, since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VsockCounters {
    /// Packets taken from the guest.
    pub packets_from_guest: u64,
    /// Packets given to the guest.
    pub packets_to_guest: u64,
    /// Data taken from the guest.
    pub bytes_from_guest: u64,
    /// Data given to the guest.
    pub bytes_to_guest: u64,
    /// Buffers and packets of the guest that made no sense and were dropped.
    pub malformed: u64,
    /// Packets and requests of the guest that were answered with a reset.
    pub resets: u64,
}

/// The one connection a guest may open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ready {
    Awaited,
    Arrived(ConnectionId),
    Taken,
}

#[derive(Clone, Copy)]
struct Reset {
    ports: Ports,
    kind: u16,
}

/// See the module.
pub struct Muxer {
    guest_cid: u64,
    ready_port: u32,
    connections: BTreeMap<ConnectionId, Connection>,
    /// The connections the guest may send on.
    live: BTreeMap<Ports, ConnectionId>,
    next_id: u64,
    next_port: u32,
    ready: Ready,
    ready_waiter: Option<Waker>,
    resets: VecDeque<Reset>,
    /// Connections with something to send, each once, served in turn.
    sendable: VecDeque<ConnectionId>,
    wakers: Vec<Waker>,
    gone: bool,
    /// What happened so far.
    pub counters: VsockCounters,
}

impl Muxer {
    /// A muxer without connections, whose first local port is derived from `seed`.
    pub fn new(guest_cid: u64, ready_port: u32, seed: u32) -> Self {
        Self {
            guest_cid,
            ready_port,
            connections: BTreeMap::new(),
            live: BTreeMap::new(),
            next_id: 0,
            next_port: seed | FIRST_LOCAL_PORT,
            ready: Ready::Awaited,
            ready_waiter: None,
            resets: VecDeque::new(),
            sendable: VecDeque::new(),
            wakers: Vec::new(),
            gone: false,
            counters: VsockCounters::default(),
        }
    }

    /// The tasks to wake, once the muxer's lock is released.
    pub fn take_wakers(&mut self) -> Vec<Waker> {
        mem::take(&mut self.wakers)
    }

    /// Whether [`Self::next_packet`] has something to give.
    pub fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.sendable.is_empty()
    }

    /// Whether so many answers wait that no packet may be taken in.
    pub fn is_congested(&self) -> bool {
        self.resets.len() >= MAX_RESETS
    }

    /// Takes in a packet of the guest, of which `available` bytes of data lie in `data`.
    pub fn receive(&mut self, header: &Header, available: usize, data: &mut impl Read) {
        self.counters.packets_from_guest += 1;
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            self.counters.malformed += 1;
            return;
        }
        let ports = header.ports_from_guest();
        let op = Op::from_wire(header.op);
        if header.kind != TYPE_STREAM {
            // A reset is never answered, so that two muxers cannot play ping-pong.
            if op != Some(Op::Reset) {
                self.push_reset(ports, header.kind);
            }
            return;
        }
        let complete = usize::try_from(header.len).is_ok_and(|len| len <= available);
        match (op, self.live.get(&ports).copied()) {
            (Some(Op::Reset), Some(id)) => self.reset_by_guest(id),
            (Some(Op::Reset), None) => {}
            (Some(op), Some(id)) if complete => self.receive_on(id, op, header, data),
            (Some(Op::Request), None) => self.receive_request(ports, header),
            (_, id) => {
                self.counters.malformed += u64::from(op.is_none() || !complete);
                match id {
                    Some(id) => self.abort(id),
                    None => self.push_reset(ports, TYPE_STREAM),
                }
            }
        }
    }

    fn receive_on(&mut self, id: ConnectionId, op: Op, header: &Header, data: &mut impl Read) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let received = match connection.update_credit(header.buf_alloc, header.fwd_cnt) {
            Ok(()) => connection.receive(op, header.flags, header.len, data),
            Err(_) => Received::Violation,
        };
        match (received, op) {
            (Received::Accepted, Op::Data) => {
                self.counters.bytes_from_guest += u64::from(header.len);
                self.wakers.extend(connection.reader_to_wake());
            }
            (Received::Accepted, Op::Response | Op::Shutdown) => {
                self.wakers.extend(connection.all_to_wake());
            }
            (Received::Accepted, _) => {}
            (Received::Finished, _) => {
                let ports = connection.ports;
                self.end(id, Ending::Finished);
                self.push_reset(ports, TYPE_STREAM);
            }
            (Received::Violation, _) => self.abort(id),
        }
        self.schedule(id);
    }

    fn receive_request(&mut self, ports: Ports, header: &Header) {
        let mut connection = Connection::from_guest(ports);
        let is_ready = ports.host == self.ready_port
            && self.ready == Ready::Awaited
            && self.connections.len() < MAX_CONNECTIONS
            && connection
                .update_credit(header.buf_alloc, header.fwd_cnt)
                .is_ok();
        if !is_ready {
            self.push_reset(ports, TYPE_STREAM);
            return;
        }
        let id = self.insert(connection);
        self.ready = Ready::Arrived(id);
        self.wakers.extend(self.ready_waiter.take());
    }

    /// The next packet for the guest; its data, at most `room` bytes, goes to `sink`.
    /// `room` must not be zero.
    ///
    /// # Errors
    /// What `sink` answers; the packet's connection is broken off.
    pub fn next_packet(
        &mut self,
        room: usize,
        sink: &mut impl Write,
    ) -> io::Result<Option<Header>> {
        if let Some(reset) = self.resets.pop_front() {
            self.counters.packets_to_guest += 1;
            return Ok(Some(self.header(reset.ports, reset.kind, Op::Reset)));
        }
        while let Some(id) = self.sendable.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            connection.scheduled = false;
            let Some(packet) = connection.outgoing(room) else {
                continue;
            };
            let (buf_alloc, fwd_cnt) = match connection.send(packet, sink) {
                Ok(counters) => counters,
                Err(error) => {
                    self.abort(id);
                    return Err(error);
                }
            };
            self.wakers.extend(connection.writer_to_wake());
            let ports = connection.ports;
            self.schedule(id);
            self.counters.packets_to_guest += 1;
            self.counters.bytes_to_guest += u64::from(packet.len);
            return Ok(Some(Header {
                len: packet.len,
                flags: packet.flags,
                buf_alloc,
                fwd_cnt,
                ..self.header(ports, TYPE_STREAM, packet.op)
            }));
        }
        Ok(None)
    }

    fn header(&self, ports: Ports, kind: u16, op: Op) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: ports.host,
            dst_port: ports.guest,
            len: 0,
            kind,
            op: op as u16,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }

    /// Asks the guest for a connection to its port `guest_port`.
    ///
    /// # Errors
    /// `NotConnected` when the device is gone, `QuotaExceeded` with too many connections.
    pub fn connect(&mut self, guest_port: u32) -> io::Result<ConnectionId> {
        if self.gone {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if self.connections.len() >= MAX_CONNECTIONS {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let host = self.free_port();
        Ok(self.insert(Connection::to_guest(Ports {
            host,
            guest: guest_port,
        })))
    }

    /// A local port that no live connection has. There are far more ports than connections.
    fn free_port(&mut self) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = host.wrapping_add(1) | FIRST_LOCAL_PORT;
            let all = Ports { host, guest: 0 }..=Ports {
                host,
                guest: u32::MAX,
            };
            if host != self.ready_port && self.live.range(all).next().is_none() {
                return host;
            }
        }
    }

    fn insert(&mut self, connection: Connection) -> ConnectionId {
        let id = ConnectionId(self.next_id);
        self.next_id += 1;
        self.live.insert(connection.ports, id);
        self.connections.insert(id, connection);
        self.schedule(id);
        id
    }

    /// Puts a connection in line if it has something to send.
    fn schedule(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !connection.scheduled
            && connection.outgoing(usize::MAX).is_some()
        {
            connection.scheduled = true;
            self.sendable.push_back(id);
        }
    }

    fn push_reset(&mut self, ports: Ports, kind: u16) {
        self.counters.resets += 1;
        self.resets.push_back(Reset { ports, kind });
    }

    /// Breaks a connection off and tells the guest.
    fn abort(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        if connection.is_known_to_guest() {
            let ports = connection.ports;
            self.push_reset(ports, TYPE_STREAM);
        }
        self.end(id, Ending::Reset);
    }

    fn reset_by_guest(&mut self, id: ConnectionId) {
        let connecting = self
            .connections
            .get(&id)
            .is_some_and(|held| held.phase == Phase::Connecting);
        self.end(
            id,
            if connecting {
                Ending::Refused
            } else {
                Ending::Reset
            },
        );
    }

    /// The connection is over for the guest, and for the host when nobody holds it there.
    fn end(&mut self, id: ConnectionId, ending: Ending) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        self.live.remove(&connection.ports);
        connection.close(ending);
        if mem::take(&mut connection.scheduled) {
            self.sendable.retain(|other| *other != id);
        }
        self.wakers.extend(connection.all_to_wake());
        if !connection.held {
            self.connections.remove(&id);
        }
    }

    /// The guest's driver is gone, and with it all that it knew: every connection ends with
    /// a reset, and the guest may open its one connection again.
    pub fn reset_all(&mut self) {
        let live: Vec<_> = self.live.values().copied().collect();
        for id in live {
            self.end(id, Ending::Reset);
        }
        if let Ready::Arrived(id) = self.ready {
            self.connections.remove(&id);
        }
        self.ready = Ready::Awaited;
        self.resets.clear();
        self.sendable.clear();
    }

    /// The device is gone: besides [`Self::reset_all`], nothing can be opened any more.
    pub fn shut(&mut self) {
        self.reset_all();
        self.gone = true;
        self.wakers.extend(self.ready_waiter.take());
    }

    /// Ready with the connection the guest opened, once for each time its driver started.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<ConnectionId>> {
        match self.ready {
            Ready::Arrived(id) => {
                self.ready = Ready::Taken;
                Poll::Ready(Ok(id))
            }
            Ready::Awaited | Ready::Taken if self.gone => {
                Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
            }
            Ready::Awaited | Ready::Taken => {
                self.ready_waiter = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Lets the host's end of a connection act, then puts it in line if that gave it
    /// something to send.
    ///
    /// # Errors
    /// `NotConnected` when there is no such connection, which only a bug can bring about.
    pub fn on<T>(
        &mut self,
        id: ConnectionId,
        act: impl FnOnce(&mut Connection) -> T,
    ) -> io::Result<T> {
        let connection = self
            .connections
            .get_mut(&id)
            .ok_or(io::ErrorKind::NotConnected)?;
        let result = act(connection);
        self.schedule(id);
        Ok(result)
    }

    /// The host lets go of a connection: what was written still goes to the guest, unless
    /// something is left unread, which resets it (as TCP does, RFC 2525 2.17).
    pub fn release(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.held = false;
        match connection.phase {
            Phase::Closed(_) => {
                self.connections.remove(&id);
            }
            Phase::Open if connection.unread_len() == 0 => self.schedule(id),
            Phase::Open | Phase::Connecting => self.abort(id),
        }
    }

    /// Connections that take up space, also those that are over but held.
    #[cfg(test)]
    pub fn connection_count(&self) -> usize {
        self.connections.len()
    }
}
