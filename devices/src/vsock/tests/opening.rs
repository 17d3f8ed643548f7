//! How connections begin, and how many there can be.

use std::io::ErrorKind;
use std::task::Poll;

use super::super::muxer::{MAX_CONNECTIONS, Muxer};
use super::super::packet::{Op, Ports};
use super::super::testing::GUEST_CID;
use super::script::{
    PORT, connected, muxer, next, next_op, packet, poll_connected, read, send, send_data,
};
use super::{READY_PORT, poll_once};

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
