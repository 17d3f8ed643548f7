//! Peers that break the protocol.

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::frame::{self, Kind, Payload};
use super::super::message::{Request, Response};
use super::*;

fn request(method: &str) -> Request {
    Request {
        service: "test.Echo".to_owned(),
        method: method.to_owned(),
        payload: "hello".to_owned().encode_to_vec().into(),
        timeout_nano: 0,
        metadata: Vec::new(),
    }
}

/// The next reply's stream and code.
async fn reply(stream: &mut DuplexStream) -> (u32, Code) {
    let frame = soon(frame::read(stream)).await.unwrap().unwrap();
    assert_eq!(frame.kind, Kind::Response);
    let Payload::Complete(payload) = frame.payload else {
        panic!("oversized reply")
    };
    let status = Response::decode(payload).unwrap().status;
    (
        frame.stream_id,
        status.map_or(Code::Ok, |status| status.code.into()),
    )
}

async fn send(stream: &mut DuplexStream, stream_id: u32, kind: Kind, message: &impl Message) {
    stream
        .write_all(&frame::encode(stream_id, kind, message).unwrap())
        .await
        .unwrap();
}

async fn assert_serves(stream: &mut DuplexStream, stream_id: u32) {
    send(stream, stream_id, Kind::Request, &request("Echo")).await;
    assert_eq!(reply(stream).await, (stream_id, Code::Ok));
}

#[tokio::test]
async fn the_server_answers_an_oversized_request_and_goes_on() {
    let (mut stream, _) = served();
    let len = MESSAGE_LEN_MAX + 1;
    stream
        .write_all(&u32::try_from(len).unwrap().to_be_bytes())
        .await
        .unwrap();
    stream.write_all(&[0, 0, 0, 1, 1, 0]).await.unwrap();
    stream.write_all(&vec![0; len]).await.unwrap();
    assert_eq!(reply(&mut stream).await, (1, Code::ResourceExhausted));
    assert_serves(&mut stream, 3).await;
}

#[tokio::test]
async fn the_server_answers_a_request_that_cannot_be_decoded_and_goes_on() {
    let (mut stream, _) = served();
    // A field of a wire type that does not exist.
    stream
        .write_all(&[0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0x0f])
        .await
        .unwrap();
    assert_eq!(reply(&mut stream).await, (1, Code::InvalidArgument));
    // An envelope whose payload is not the method's request.
    let wrong = Request {
        payload: vec![0x0f].into(),
        ..request("Echo")
    };
    send(&mut stream, 3, Kind::Request, &wrong).await;
    assert_eq!(reply(&mut stream).await, (3, Code::InvalidArgument));
    assert_serves(&mut stream, 5).await;
}

#[tokio::test]
async fn the_server_refuses_stream_ids_that_are_even_or_do_not_rise() {
    let (mut stream, _) = served();
    send(&mut stream, 2, Kind::Request, &request("Echo")).await;
    assert_eq!(reply(&mut stream).await, (2, Code::InvalidArgument));
    assert_serves(&mut stream, 7).await;
    send(&mut stream, 7, Kind::Request, &request("Echo")).await;
    assert_eq!(reply(&mut stream).await, (7, Code::InvalidArgument));
    assert_serves(&mut stream, 9).await;
}

#[tokio::test]
async fn the_server_refuses_streaming_and_passes_over_unknown_kinds() {
    let (mut stream, _) = served();
    send(&mut stream, 1, Kind::Data, &request("Echo")).await;
    assert_eq!(reply(&mut stream).await, (1, Code::InvalidArgument));
    send(&mut stream, 3, Kind::Other(9), &request("Echo")).await;
    send(&mut stream, 3, Kind::Response, &Response::default()).await;
    assert_serves(&mut stream, 3).await;
}

#[tokio::test]
async fn the_server_ends_a_connection_that_breaks_off_inside_a_frame() {
    for cut in [3, 10, 14] {
        let (mut near, far) = tokio::io::duplex(1024);
        let server = Server::new().with_service(Arc::new(Echo::default()));
        let serving = tokio::spawn(async move { server.serve(far).await });
        let whole = frame::encode(1, Kind::Request, &request("Echo")).unwrap();
        near.write_all(&whole[..cut]).await.unwrap();
        drop(near);
        let error = soon(serving).await.unwrap().unwrap_err();
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::UnexpectedEof,
            "cut at {cut}"
        );
    }
}

#[tokio::test]
async fn the_server_returns_when_the_peer_closes_between_frames() {
    let (near, far) = tokio::io::duplex(1024);
    let serving = tokio::spawn(async move { Server::new().serve(far).await });
    drop(near);
    soon(serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn pending_and_later_calls_are_unavailable_when_the_connection_ends() {
    let (near, mut far) = tokio::io::duplex(1024);
    let client = Client::new(near);
    let pending = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Wait", "").await }
    });
    soon(frame::read(&mut far)).await.unwrap().unwrap();
    drop(far);
    assert_eq!(
        soon(pending).await.unwrap().unwrap_err().code(),
        Code::Unavailable
    );
    soon(client.closed()).await;
    assert_eq!(
        soon(call(&client, "Echo", "")).await.unwrap_err().code(),
        Code::Unavailable
    );
}

#[tokio::test]
async fn the_connection_closes_with_the_last_client() {
    let (near, mut far) = tokio::io::duplex(1024);
    let client = Client::new(near);
    drop(client.clone());
    drop(client);
    assert_eq!(soon(far.read(&mut [0; 1])).await.unwrap(), 0);
}

#[tokio::test]
async fn the_client_takes_a_broken_reply_as_that_calls_failure() {
    let (near, mut far) = tokio::io::duplex(1024);
    let client = Client::new(near);
    let broken = call(&client, "Echo", "");
    let answer = async {
        let frame = frame::read(&mut far).await.unwrap().unwrap();
        // A reply to a call that nobody made, then one that cannot be decoded.
        send(&mut far, 77, Kind::Response, &Response::default()).await;
        let mut header = 1_u32.to_be_bytes().to_vec();
        header.extend_from_slice(&frame.stream_id.to_be_bytes());
        header.extend_from_slice(&[2, 0, 0x0f]);
        far.write_all(&header).await.unwrap();
    };
    let (status, ()) = soon(async { tokio::join!(broken, answer) }).await;
    assert_eq!(status.unwrap_err().code(), Code::Internal);
    let good = call(&client, "Echo", "");
    let answer = async {
        let frame = frame::read(&mut far).await.unwrap().unwrap();
        send(
            &mut far,
            frame.stream_id,
            Kind::Response,
            &Response::default(),
        )
        .await;
    };
    let (reply, ()) = soon(async { tokio::join!(good, answer) }).await;
    assert_eq!(reply, Ok(String::new()));
}

#[tokio::test]
async fn the_request_carries_deadline_and_metadata() {
    let (near, mut far) = tokio::io::duplex(1024);
    let client = Client::new(near);
    let options = CallOptions::new()
        .with_timeout(Duration::from_secs(5))
        .with_metadata("containerd-namespace-ttrpc", "k8s.io");
    let pending = tokio::spawn(async move { call_with(&client, "Echo", "", &options).await });
    let frame = soon(frame::read(&mut far)).await.unwrap().unwrap();
    let Payload::Complete(payload) = frame.payload else {
        panic!("oversized request")
    };
    let request = Request::decode(payload).unwrap();
    assert_eq!(
        (request.service.as_str(), request.method.as_str()),
        ("test.Echo", "Echo")
    );
    assert_eq!(request.timeout_nano, 5_000_000_000);
    assert_eq!(request.metadata[0].key, "containerd-namespace-ttrpc");
    assert_eq!(request.metadata[0].value, "k8s.io");
    pending.abort();
}
