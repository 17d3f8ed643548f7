//! How connections end, in order and otherwise.

use std::io::ErrorKind;
use std::task::Poll;

use super::super::packet::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::script::{connected, muxer, next, next_op, packet, read, send, send_data, write};

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
