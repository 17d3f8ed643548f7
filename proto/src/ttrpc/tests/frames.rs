//! The frame decoder on its own.

use std::io;

use bytes::Bytes;
use proptest::prelude::*;

use super::super::frame::{self, Frame, Kind, Payload};
use super::super::message::Request;
use super::*;

/// Decodes a whole stream.
fn decode(mut stream: &[u8]) -> (Vec<Frame>, io::Result<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut frames = Vec::new();
        loop {
            match frame::read(&mut stream).await {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, Ok(())),
                Err(error) => return (frames, Err(error)),
            }
        }
    })
}

fn request(payload: &[u8]) -> Request {
    Request {
        service: "s".to_owned(),
        method: "m".to_owned(),
        payload: Bytes::copy_from_slice(payload),
        timeout_nano: 0,
        metadata: Vec::new(),
    }
}

#[test]
fn the_header_is_length_stream_id_kind_and_flags_in_big_endian() {
    let frame = frame::encode(0x0102_0305, Kind::Request, &request(b"")).unwrap();
    assert_eq!(frame[..10], [0, 0, 0, 6, 1, 2, 3, 5, 1, 0]);
    assert_eq!(frame.len(), 16);
}

#[test]
fn a_payload_beyond_the_maximum_is_passed_over() {
    let len = u32::try_from(MESSAGE_LEN_MAX + 1).unwrap();
    let mut stream = len.to_be_bytes().to_vec();
    stream.extend_from_slice(&[0, 0, 0, 1, 1, 0]);
    stream.resize(stream.len() + MESSAGE_LEN_MAX + 1, 7);
    stream.extend(frame::encode(3, Kind::Request, &request(b"next")).unwrap());
    let (frames, end) = decode(&stream);
    end.unwrap();
    assert_eq!(frames[0].payload, Payload::Oversized(len));
    assert_eq!(frames[1].stream_id, 3);
}

proptest! {
    #[test]
    fn any_bytes_decode_to_frames_and_an_end(stream in prop::collection::vec(any::<u8>(), 0..4096)) {
        let (frames, end) = decode(&stream);
        let consumed: usize = frames
            .iter()
            .map(|frame| match &frame.payload {
                Payload::Complete(payload) => 10 + payload.len(),
                Payload::Oversized(_) => unreachable!("longer than the stream"),
            })
            .sum();
        match end {
            Ok(()) => prop_assert_eq!(consumed, stream.len()),
            Err(error) => {
                prop_assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
                prop_assert!(consumed < stream.len());
            }
        }
    }

    #[test]
    fn what_was_encoded_decodes_to_itself(
        payloads in prop::collection::vec((any::<u32>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..512)), 0..8)
    ) {
        let mut stream = Vec::new();
        let mut expected = Vec::new();
        for (stream_id, kind, payload) in &payloads {
            let encoded = frame::encode(*stream_id, (*kind).into(), &request(payload)).unwrap();
            expected.push(Frame {
                stream_id: *stream_id,
                kind: (*kind).into(),
                payload: Payload::Complete(Bytes::copy_from_slice(&encoded[10..])),
            });
            stream.extend(encoded);
        }
        let (frames, end) = decode(&stream);
        end.unwrap();
        prop_assert_eq!(frames, expected);
    }

    #[test]
    fn a_cut_stream_ends_as_unexpected(cut in 1_usize..16) {
        let encoded = frame::encode(1, Kind::Request, &request(b"")).unwrap();
        let (frames, end) = decode(&encoded[..cut.min(encoded.len() - 1)]);
        prop_assert!(frames.is_empty());
        prop_assert_eq!(end.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
