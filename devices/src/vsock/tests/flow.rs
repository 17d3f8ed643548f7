//! How data flows, and that neither side runs over the other.

use std::io::ErrorKind;
use std::task::Poll;

use super::super::connection::SEND_BUFFER_LEN;
use super::super::credit::RECEIVE_WINDOW;
use super::super::packet::{Header, Op};
use super::script::{connected, muxer, next, next_op, packet, read, send, send_data, write};

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
