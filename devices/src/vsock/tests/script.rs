//! A guest that says what a test wants, to the muxer alone: packets in, packets out.

use std::io::{self, ErrorKind};
use std::task::Poll;

use super::super::credit::RECEIVE_WINDOW;
use super::super::muxer::{ConnectionId, Muxer};
use super::super::packet::{HOST_CID, Header, Op, Ports, TYPE_STREAM};
use super::super::testing::GUEST_CID;
use super::{READY_PORT, poll_once};

pub const PORT: u32 = 77;

pub fn muxer() -> Muxer {
    Muxer::new(GUEST_CID, READY_PORT, 0)
}

/// What a guest would send, its window wide open unless changed.
pub fn packet(ports: Ports, op: Op) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: ports.guest,
        dst_port: ports.host,
        len: 0,
        kind: TYPE_STREAM,
        op: op as u16,
        flags: 0,
        buf_alloc: 1 << 20,
        fwd_cnt: 0,
    }
}

pub fn send(muxer: &mut Muxer, header: Header) {
    muxer.receive(&header, 0, &mut io::empty());
}

pub fn send_data(muxer: &mut Muxer, ports: Ports, data: &[u8]) {
    let header = Header {
        len: u32::try_from(data.len()).unwrap(),
        ..packet(ports, Op::Data)
    };
    muxer.receive(&header, data.len(), &mut &*data);
}

pub fn next(muxer: &mut Muxer) -> Option<(Header, Vec<u8>)> {
    let mut data = Vec::new();
    let header = muxer.next_packet(4096, &mut data).unwrap()?;
    assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, GUEST_CID));
    assert_eq!(header.len as usize, data.len());
    Some((header, data))
}

pub fn next_op(muxer: &mut Muxer) -> Option<Op> {
    next(muxer).map(|(header, _)| Op::from_wire(header.op).unwrap())
}

/// A connection that the host opened to [`PORT`].
pub fn connected(muxer: &mut Muxer) -> (ConnectionId, Ports) {
    let id = muxer.connect(PORT).unwrap();
    let (request, _) = next(muxer).unwrap();
    assert_eq!((request.op, request.dst_port), (Op::Request as u16, PORT));
    assert_eq!((request.buf_alloc, request.fwd_cnt), (RECEIVE_WINDOW, 0));
    let ports = Ports {
        host: request.src_port,
        guest: PORT,
    };
    send(muxer, packet(ports, Op::Response));
    assert_eq!(poll_connected(muxer, id), Poll::Ready(Ok(())));
    (id, ports)
}

pub fn poll_connected(muxer: &mut Muxer, id: ConnectionId) -> Poll<Result<(), ErrorKind>> {
    let poll = muxer.on(id, |connection| {
        poll_once(|cx| connection.poll_connected(cx))
    });
    poll.unwrap().map_err(|error| error.kind())
}

pub fn read(muxer: &mut Muxer, id: ConnectionId, len: usize) -> Poll<Result<Vec<u8>, ErrorKind>> {
    let mut buffer = vec![0; len];
    let poll = muxer.on(id, |connection| {
        poll_once(|cx| connection.poll_read(cx, &mut buffer))
    });
    poll.unwrap().map(|outcome| match outcome {
        Ok(count) => Ok(buffer[..count].to_vec()),
        Err(error) => Err(error.kind()),
    })
}

pub fn write(muxer: &mut Muxer, id: ConnectionId, data: &[u8]) -> Poll<Result<usize, ErrorKind>> {
    let poll = muxer.on(id, |connection| {
        poll_once(|cx| connection.poll_write(cx, data))
    });
    poll.unwrap().map_err(|error| error.kind())
}
