//! The muxer alone: packets in, packets out.

use std::io::{self, ErrorKind};
use std::task::Poll;

use proptest::prelude::*;

use super::super::connection::SEND_BUFFER_LEN;
use super::super::credit::RECEIVE_WINDOW;
use super::super::muxer::{ConnectionId, MAX_CONNECTIONS, Muxer};
use super::super::packet::{
    HOST_CID, Header, Op, Ports, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};
use super::super::testing::GUEST_CID;
use super::{READY_PORT, poll_once};

const PORT: u32 = 77;

fn muxer() -> Muxer {
    Muxer::new(GUEST_CID, READY_PORT, 0)
}

/// What a guest would send, its window wide open unless changed.
fn packet(ports: Ports, op: Op) -> Header {
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

fn send(muxer: &mut Muxer, header: Header) {
    muxer.receive(&header, 0, &mut io::empty());
}

fn send_data(muxer: &mut Muxer, ports: Ports, data: &[u8]) {
    let header = Header {
        len: u32::try_from(data.len()).unwrap(),
        ..packet(ports, Op::Data)
    };
    muxer.receive(&header, data.len(), &mut &*data);
}

fn next(muxer: &mut Muxer) -> Option<(Header, Vec<u8>)> {
    let mut data = Vec::new();
    let header = muxer.next_packet(4096, &mut data).unwrap()?;
    assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, GUEST_CID));
    assert_eq!(header.len as usize, data.len());
    Some((header, data))
}

fn next_op(muxer: &mut Muxer) -> Option<Op> {
    next(muxer).map(|(header, _)| Op::from_wire(header.op).unwrap())
}

/// A connection that the host opened to [`PORT`].
fn connected(muxer: &mut Muxer) -> (ConnectionId, Ports) {
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

fn poll_connected(muxer: &mut Muxer, id: ConnectionId) -> Poll<Result<(), ErrorKind>> {
    let poll = muxer.on(id, |connection| {
        poll_once(|cx| connection.poll_connected(cx))
    });
    poll.unwrap().map_err(|error| error.kind())
}

fn read(muxer: &mut Muxer, id: ConnectionId, len: usize) -> Poll<Result<Vec<u8>, ErrorKind>> {
    let mut buffer = vec![0; len];
    let poll = muxer.on(id, |connection| {
        poll_once(|cx| connection.poll_read(cx, &mut buffer))
    });
    poll.unwrap().map(|outcome| match outcome {
        Ok(count) => Ok(buffer[..count].to_vec()),
        Err(error) => Err(error.kind()),
    })
}

fn write(muxer: &mut Muxer, id: ConnectionId, data: &[u8]) -> Poll<Result<usize, ErrorKind>> {
    let poll = muxer.on(id, |connection| {
        poll_once(|cx| connection.poll_write(cx, data))
    });
    poll.unwrap().map_err(|error| error.kind())
}

#[test]
fn a_refused_request_is_told_to_who_asked() {
    let mut muxer = muxer();
    let id = muxer.connect(PORT).unwrap();
    assert!(poll_connected(&mut muxer, id).is_pending());
    let (request, _) = next(&mut muxer).unwrap();
    let ports = Ports {
        host: request.src_port,
        guest: PORT,
    };
    send(&mut muxer, packet(ports, Op::Reset));
    assert_eq!(
        poll_connected(&mut muxer, id),
        Poll::Ready(Err(ErrorKind::ConnectionRefused))
    );
    muxer.release(id);
    assert_eq!(next_op(&mut muxer), None);
}

#[test]
fn a_request_given_up_before_it_was_sent_is_never_sent() {
    let mut muxer = muxer();
    let id = muxer.connect(PORT).unwrap();
    muxer.release(id);
    assert!(!muxer.has_packets());
}

#[test]
fn a_request_given_up_after_it_was_sent_is_reset() {
    let mut muxer = muxer();
    let id = muxer.connect(PORT).unwrap();
    assert_eq!(next_op(&mut muxer), Some(Op::Request));
    muxer.release(id);
    assert_eq!(next_op(&mut muxer), Some(Op::Reset));
}

#[test]
fn an_answer_to_a_request_that_was_not_sent_opens_nothing() {
    let mut muxer = Muxer::new(GUEST_CID, READY_PORT, 5);
    let id = muxer.connect(PORT).unwrap();
    send(
        &mut muxer,
        packet(
            Ports {
                host: 5 | 1 << 30,
                guest: PORT,
            },
            Op::Response,
        ),
    );
    assert_eq!(
        poll_connected(&mut muxer, id),
        Poll::Ready(Err(ErrorKind::ConnectionReset))
    );
    assert_eq!(
        next_op(&mut muxer),
        None,
        "the guest knows of no connection"
    );
}

#[test]
fn the_guest_opens_one_connection_to_the_ready_port_and_no_other() {
    let mut muxer = muxer();
    send(
        &mut muxer,
        packet(
            Ports {
                host: READY_PORT + 1,
                guest: 9,
            },
            Op::Request,
        ),
    );
    assert_eq!(next_op(&mut muxer), Some(Op::Reset));
    assert!(poll_once(|cx| muxer.poll_ready(cx)).is_pending());
    let ports = Ports {
        host: READY_PORT,
        guest: 9,
    };
    send(&mut muxer, packet(ports, Op::Request));
    assert_eq!(muxer.take_wakers().len(), 1);
    assert_eq!(next_op(&mut muxer), Some(Op::Response));
    let Poll::Ready(Ok(id)) = poll_once(|cx| muxer.poll_ready(cx)) else {
        panic!("not ready")
    };
    send_data(&mut muxer, ports, b"hello");
    assert_eq!(read(&mut muxer, id, 16), Poll::Ready(Ok(b"hello".to_vec())));
    send(
        &mut muxer,
        packet(
            Ports {
                host: READY_PORT,
                guest: 10,
            },
            Op::Request,
        ),
    );
    assert_eq!(next_op(&mut muxer), Some(Op::Reset));
    assert!(poll_once(|cx| muxer.poll_ready(cx)).is_pending());
    // Its next start may open one again, even from the same port and with the first unclosed.
    muxer.reset_all();
    assert_eq!(
        read(&mut muxer, id, 16),
        Poll::Ready(Err(ErrorKind::ConnectionReset))
    );
    send(&mut muxer, packet(ports, Op::Request));
    assert!(poll_once(|cx| muxer.poll_ready(cx)).is_ready());
    muxer.release(id);
    assert_eq!(next_op(&mut muxer), Some(Op::Response));
}

#[test]
fn a_repeated_request_on_an_open_connection_resets_it() {
    let mut muxer = muxer();
    let (id, ports) = connected(&mut muxer);
    send(&mut muxer, packet(ports, Op::Request));
    assert_eq!(next_op(&mut muxer), Some(Op::Reset));
    assert_eq!(
        read(&mut muxer, id, 1),
        Poll::Ready(Err(ErrorKind::ConnectionReset))
    );
}

#[test]
fn a_reader_that_does_not_read_gives_no_credit_and_holds_one_window() {
    let mut muxer = muxer();
    let (id, ports) = connected(&mut muxer);
    let chunk = vec![7; 64 * 1024];
    for _ in 0..4 {
        send_data(&mut muxer, ports, &chunk);
    }
    assert_eq!(next_op(&mut muxer), None);
    send(&mut muxer, packet(ports, Op::CreditRequest));
    let (update, _) = next(&mut muxer).unwrap();
    assert_eq!((update.buf_alloc, update.fwd_cnt), (RECEIVE_WINDOW, 0));
    // Reading frees the window, and the guest hears of it.
    assert_eq!(
        read(&mut muxer, id, chunk.len()),
        Poll::Ready(Ok(chunk.clone()))
    );
    let (update, _) = next(&mut muxer).unwrap();
    assert_eq!(
        (update.op, update.fwd_cnt),
        (Op::CreditUpdate as u16, 64 * 1024)
    );
    send_data(&mut muxer, ports, &chunk);
    send_data(&mut muxer, ports, b"x");
    assert_eq!(
        next_op(&mut muxer),
        Some(Op::Reset),
        "a byte more than the credit"
    );
    for _ in 0..4 {
        assert!(matches!(
            read(&mut muxer, id, chunk.len()),
            Poll::Ready(Ok(_))
        ));
    }
    assert_eq!(
        read(&mut muxer, id, 1),
        Poll::Ready(Err(ErrorKind::ConnectionReset))
    );
}

#[test]
fn a_writer_waits_while_the_guest_gives_no_credit() {
    let mut muxer = muxer();
    let (id, ports) = connected(&mut muxer);
    send(
        &mut muxer,
        Header {
            buf_alloc: 10,
            ..packet(ports, Op::CreditUpdate)
        },
    );
    let data = vec![1; SEND_BUFFER_LEN + 1];
    assert_eq!(
        write(&mut muxer, id, &data),
        Poll::Ready(Ok(SEND_BUFFER_LEN))
    );
    assert!(write(&mut muxer, id, &data).is_pending());
    assert_eq!(next(&mut muxer).unwrap().1.len(), 10);
    assert_eq!(next_op(&mut muxer), Some(Op::CreditRequest));
    assert_eq!(next_op(&mut muxer), None, "asked once");
    let update = Header {
        buf_alloc: 1 << 20,
        fwd_cnt: 10,
        ..packet(ports, Op::CreditUpdate)
    };
    send(&mut muxer, update);
    while let Some((header, _)) = next(&mut muxer) {
        assert_eq!(header.op, Op::Data as u16);
    }
    assert_eq!(muxer.take_wakers().len(), 1);
    assert_eq!(
        write(&mut muxer, id, &data),
        Poll::Ready(Ok(SEND_BUFFER_LEN))
    );
}

#[test]
fn acknowledging_too_much_resets_the_connection() {
    let mut muxer = muxer();
    let (id, ports) = connected(&mut muxer);
    send(
        &mut muxer,
        Header {
            fwd_cnt: 1,
            ..packet(ports, Op::CreditUpdate)
        },
    );
    assert_eq!(next_op(&mut muxer), Some(Op::Reset));
    assert_eq!(
        write(&mut muxer, id, b"x"),
        Poll::Ready(Err(ErrorKind::ConnectionReset))
    );
}

#[test]
fn the_guests_shutdown_of_sending_ends_reading_after_the_data_and_not_writing() {
    let mut muxer = muxer();
    let (id, ports) = connected(&mut muxer);
    send_data(&mut muxer, ports, b"last words");
    send(
        &mut muxer,
        Header {
            flags: SHUTDOWN_SEND,
            ..packet(ports, Op::Shutdown)
        },
    );
    assert_eq!(
        read(&mut muxer, id, 64),
        Poll::Ready(Ok(b"last words".to_vec()))
    );
    assert_eq!(read(&mut muxer, id, 64), Poll::Ready(Ok(Vec::new())));
    assert_eq!(write(&mut muxer, id, b"reply"), Poll::Ready(Ok(5)));
    assert_eq!(next(&mut muxer).unwrap().1, b"reply");
    send_data(&mut muxer, ports, b"more");
    assert_eq!(
        next_op(&mut muxer),
        Some(Op::Reset),
        "it said that it sends no more"
    );
}

#[test]
fn the_guests_shutdown_of_receiving_ends_writing() {
    let mut muxer = muxer();
    let (id, ports) = connected(&mut muxer);
    assert_eq!(write(&mut muxer, id, b"unwanted"), Poll::Ready(Ok(8)));
    send(
        &mut muxer,
        Header {
            flags: SHUTDOWN_RECEIVE,
            ..packet(ports, Op::Shutdown)
        },
    );
    assert_eq!(
        write(&mut muxer, id, b"x"),
        Poll::Ready(Err(ErrorKind::BrokenPipe))
    );
    assert_eq!(next_op(&mut muxer), None);
    assert!(read(&mut muxer, id, 1).is_pending());
}

#[test]
fn a_guest_that_shuts_both_ways_gets_its_reset_and_its_data_is_read() {
    let mut muxer = muxer();
    let (id, ports) = connected(&mut muxer);
    send_data(&mut muxer, ports, b"bye");
    send(
        &mut muxer,
        Header {
            flags: SHUTDOWN_BOTH,
            ..packet(ports, Op::Shutdown)
        },
    );
    assert_eq!(next_op(&mut muxer), Some(Op::Reset));
    assert_eq!(read(&mut muxer, id, 64), Poll::Ready(Ok(b"bye".to_vec())));
    assert_eq!(read(&mut muxer, id, 64), Poll::Ready(Ok(Vec::new())));
    assert_eq!(
        write(&mut muxer, id, b"x"),
        Poll::Ready(Err(ErrorKind::BrokenPipe))
    );
    send_data(&mut muxer, ports, b"ghost");
    assert_eq!(next_op(&mut muxer), Some(Op::Reset), "use after close");
    muxer.release(id);
    assert_eq!(next_op(&mut muxer), None);
}

#[test]
fn ending_what_is_written_tells_the_guest_after_the_data() {
    let mut muxer = muxer();
    let (id, _) = connected(&mut muxer);
    assert_eq!(write(&mut muxer, id, b"end"), Poll::Ready(Ok(3)));
    muxer
        .on(id, |connection| connection.shutdown_write())
        .unwrap();
    assert_eq!(
        write(&mut muxer, id, b"x"),
        Poll::Ready(Err(ErrorKind::BrokenPipe))
    );
    assert_eq!(next(&mut muxer).unwrap().1, b"end");
    let (shutdown, _) = next(&mut muxer).unwrap();
    assert_eq!(
        (shutdown.op, shutdown.flags),
        (Op::Shutdown as u16, SHUTDOWN_SEND)
    );
    assert_eq!(next_op(&mut muxer), None);
    muxer.release(id);
    let (shutdown, _) = next(&mut muxer).unwrap();
    assert_eq!(
        (shutdown.op, shutdown.flags),
        (Op::Shutdown as u16, SHUTDOWN_BOTH)
    );
}

#[test]
fn a_stream_let_go_delivers_what_was_written_and_then_closes() {
    let mut muxer = muxer();
    let (id, ports) = connected(&mut muxer);
    assert_eq!(write(&mut muxer, id, b"do this"), Poll::Ready(Ok(7)));
    muxer.release(id);
    assert_eq!(next(&mut muxer).unwrap().1, b"do this");
    let (shutdown, _) = next(&mut muxer).unwrap();
    assert_eq!(
        (shutdown.op, shutdown.flags),
        (Op::Shutdown as u16, SHUTDOWN_BOTH)
    );
    send(&mut muxer, packet(ports, Op::Reset));
    assert_eq!(next_op(&mut muxer), None);
    assert!(muxer.on(id, |_| ()).is_err(), "nothing of it is left");
}

#[test]
fn a_stream_let_go_with_unread_data_is_reset() {
    let mut muxer = muxer();
    let (id, ports) = connected(&mut muxer);
    send_data(&mut muxer, ports, b"unread");
    muxer.release(id);
    assert_eq!(next_op(&mut muxer), Some(Op::Reset));
    assert!(muxer.on(id, |_| ()).is_err(), "nothing of it is left");
}

#[test]
fn packets_of_strangers_are_dropped_and_unknown_ones_reset() {
    let mut muxer = muxer();
    let ports = Ports { host: 1, guest: 2 };
    send(
        &mut muxer,
        Header {
            src_cid: 4,
            ..packet(ports, Op::Request)
        },
    );
    send(
        &mut muxer,
        Header {
            dst_cid: 1,
            ..packet(ports, Op::Request)
        },
    );
    send(&mut muxer, packet(ports, Op::Reset));
    send(
        &mut muxer,
        Header {
            kind: 2,
            ..packet(ports, Op::Reset)
        },
    );
    assert_eq!(next_op(&mut muxer), None);
    assert_eq!(muxer.counters.malformed, 2);
    send(
        &mut muxer,
        Header {
            kind: 2,
            ..packet(ports, Op::Request)
        },
    );
    assert_eq!(next(&mut muxer).unwrap().0.kind, 2);
    send(
        &mut muxer,
        Header {
            op: 99,
            ..packet(ports, Op::Request)
        },
    );
    assert_eq!(next_op(&mut muxer), Some(Op::Reset));
    send_data(&mut muxer, ports, b"for nobody");
    assert_eq!(next_op(&mut muxer), Some(Op::Reset));
}

#[test]
fn a_length_beyond_the_data_resets_the_connection() {
    let mut muxer = muxer();
    let (id, ports) = connected(&mut muxer);
    let header = Header {
        len: 100,
        ..packet(ports, Op::Data)
    };
    muxer.receive(&header, 99, &mut [0; 99].as_slice());
    assert_eq!(next_op(&mut muxer), Some(Op::Reset));
    assert_eq!(
        read(&mut muxer, id, 1),
        Poll::Ready(Err(ErrorKind::ConnectionReset))
    );
}

#[test]
fn a_guest_that_takes_no_answers_congests_the_muxer() {
    let mut muxer = muxer();
    let mut sent = 0;
    while !muxer.is_congested() {
        send(
            &mut muxer,
            packet(
                Ports {
                    host: 1,
                    guest: sent,
                },
                Op::Request,
            ),
        );
        sent += 1;
        assert!(sent < 10_000);
    }
    assert_eq!(next_op(&mut muxer), Some(Op::Reset));
    assert!(!muxer.is_congested());
}

#[test]
fn connections_are_limited_and_local_ports_unique_across_the_wrap() {
    let mut muxer = Muxer::new(GUEST_CID, u32::MAX, u32::MAX - 2);
    let ids: Vec<_> = (0..MAX_CONNECTIONS)
        .map(|_| muxer.connect(PORT).unwrap())
        .collect();
    assert_eq!(
        muxer.connect(PORT).unwrap_err().kind(),
        ErrorKind::QuotaExceeded
    );
    let mut ports = std::collections::BTreeSet::new();
    while let Some((request, _)) = next(&mut muxer) {
        assert!(request.src_port >= 1 << 30 && request.src_port != u32::MAX);
        assert!(ports.insert(request.src_port));
    }
    assert_eq!(ports.len(), MAX_CONNECTIONS);
    muxer.release(ids[0]);
    muxer.connect(PORT).unwrap();
}

#[test]
fn connections_with_data_take_turns() {
    let mut muxer = muxer();
    let (one, _) = connected(&mut muxer);
    let (two, _) = connected(&mut muxer);
    for id in [one, two] {
        assert_eq!(write(&mut muxer, id, &[0; 10_000]), Poll::Ready(Ok(10_000)));
    }
    let order: Vec<_> = (0..6)
        .map(|_| next(&mut muxer).unwrap().0.src_port)
        .collect();
    assert!(order.windows(2).all(|pair| pair[0] != pair[1]));
}

#[test]
fn after_the_device_is_gone_nothing_waits() {
    let mut muxer = muxer();
    let (id, _) = connected(&mut muxer);
    assert!(read(&mut muxer, id, 1).is_pending());
    assert!(poll_once(|cx| muxer.poll_ready(cx)).is_pending());
    muxer.shut();
    assert_eq!(muxer.take_wakers().len(), 2);
    assert_eq!(
        read(&mut muxer, id, 1),
        Poll::Ready(Err(ErrorKind::ConnectionReset))
    );
    assert!(matches!(
        poll_once(|cx| muxer.poll_ready(cx)),
        Poll::Ready(Err(_))
    ));
    assert_eq!(
        muxer.connect(PORT).unwrap_err().kind(),
        ErrorKind::NotConnected
    );
}

/// Anything a guest could put into a header, near enough to what means something.
fn any_packet() -> impl Strategy<Value = (Header, usize)> {
    let port = prop_oneof![
        Just(READY_PORT),
        Just(1 << 30),
        Just((1 << 30) + 1),
        0..4_u32
    ];
    let op = prop_oneof![8 => 0..9_u16, 1 => any::<u16>()];
    let len = prop_oneof![4 => 0..1000_u32, 2 => 0..2 * RECEIVE_WINDOW, 1 => any::<u32>()];
    let counters = (
        prop_oneof![0..1000_u32, any::<u32>()],
        prop_oneof![0..1000_u32, any::<u32>()],
    );
    let kind = prop_oneof![9 => Just(TYPE_STREAM), 1 => any::<u16>()];
    let rest = (counters, kind, 0..4_u32, 0..1_usize << 20);
    (port, prop_oneof![Just(PORT), 0..3_u32], op, len, rest).prop_map(
        |(dst_port, src_port, op, len, ((buf_alloc, fwd_cnt), kind, flags, available))| {
            let ports = Ports {
                host: dst_port,
                guest: src_port,
            };
            let base = packet(ports, Op::Data);
            (
                Header {
                    op,
                    len,
                    kind,
                    flags,
                    buf_alloc,
                    fwd_cnt,
                    ..base
                },
                available,
            )
        },
    )
}

/// What the host's tasks may do meanwhile, on the connection chosen by the number.
#[derive(Clone, Debug)]
enum Step {
    Packet(Header, usize),
    Take,
    Connect,
    Read(usize, usize),
    Write(usize, usize),
    ShutdownWrite(usize),
    Release(usize),
    AcceptReady,
    ResetAll,
}

fn any_step() -> impl Strategy<Value = Step> {
    let which = 0..8_usize;
    prop_oneof![
        10 => any_packet().prop_map(|(header, available)| Step::Packet(header, available)),
        10 => Just(Step::Take),
        3 => Just(Step::Connect),
        3 => (which.clone(), 0..100_000_usize).prop_map(|(n, len)| Step::Read(n, len)),
        3 => (which.clone(), 0..400_000_usize).prop_map(|(n, len)| Step::Write(n, len)),
        1 => which.clone().prop_map(Step::ShutdownWrite),
        1 => which.prop_map(Step::Release),
        1 => Just(Step::AcceptReady),
        1 => Just(Step::ResetAll),
    ]
}

proptest! {
    #[test]
    fn whatever_a_guest_sends_the_muxer_stays_within_its_bounds(
        steps in prop::collection::vec(any_step(), 0..120),
    ) {
        let mut muxer = muxer();
        let mut held = Vec::new();
        for step in steps {
            match step {
                Step::Packet(header, available) if !muxer.is_congested() => {
                    muxer.receive(&header, available, &mut io::repeat(1));
                }
                Step::Packet(..) => {}
                Step::Take => {
                    let mut data = Vec::new();
                    if let Some(header) = muxer.next_packet(4096, &mut data).unwrap() {
                        prop_assert_eq!(header.len as usize, data.len());
                        prop_assert!(data.len() <= 4096);
                    }
                }
                Step::Connect => held.push(muxer.connect(PORT).unwrap()),
                Step::Read(n, len) => if let Some(&id) = held.get(n) {
                    let read = read(&mut muxer, id, len);
                    prop_assert!(read.is_pending() || read.is_ready());
                },
                Step::Write(n, len) => if let Some(&id) = held.get(n)
                    && let Poll::Ready(Ok(written)) = write(&mut muxer, id, &vec![0; len])
                {
                    prop_assert!(written <= SEND_BUFFER_LEN);
                },
                Step::ShutdownWrite(n) => if let Some(&id) = held.get(n) {
                    muxer.on(id, |connection| connection.shutdown_write()).unwrap();
                },
                Step::Release(n) => if n < held.len() {
                    muxer.release(held.swap_remove(n));
                },
                Step::AcceptReady => {
                    if let Poll::Ready(Ok(id)) = poll_once(|cx| muxer.poll_ready(cx)) {
                        held.push(id);
                    }
                }
                Step::ResetAll => muxer.reset_all(),
            }
            for &id in &held {
                let unread = muxer.on(id, |connection| connection.unread_len()).unwrap();
                prop_assert!(unread <= RECEIVE_WINDOW as usize);
            }
        }
        for id in held {
            muxer.release(id);
        }
        muxer.reset_all();
        prop_assert!(!muxer.has_packets());
        prop_assert_eq!(muxer.connection_count(), 0, "nothing is left behind");
    }
}
