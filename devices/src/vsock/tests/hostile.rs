//! Packets that no honest guest sends.

use std::io::{self, ErrorKind};
use std::task::Poll;

use proptest::prelude::*;

use super::super::connection::SEND_BUFFER_LEN;
use super::super::credit::RECEIVE_WINDOW;
use super::super::packet::{Header, Op, Ports, TYPE_STREAM};
use super::script::{PORT, connected, muxer, next, next_op, packet, read, send, send_data, write};
use super::{READY_PORT, poll_once};

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
