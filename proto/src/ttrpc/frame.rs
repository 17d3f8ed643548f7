//! Frames: a ten-byte header (length, stream id, kind, flags; big endian) and a payload.

use std::io;

use bytes::Bytes;
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// Longest payload of a frame, in bytes: what every implementation of the protocol accepts.
pub const MESSAGE_LEN_MAX: usize = 4 << 20;

const HEADER_LEN: usize = 10;

/// What a frame carries. Kinds of a later protocol are kept as they are, to be passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Response,
    Data,
    Other(u8),
}

impl From<u8> for Kind {
    fn from(byte: u8) -> Self {
        match byte {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Data,
            other => Self::Other(other),
        }
    }
}

impl From<Kind> for u8 {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Request => 1,
            Kind::Response => 2,
            Kind::Data => 3,
            Kind::Other(other) => other,
        }
    }
}

/// A frame as it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) stream_id: u32,
    pub(super) kind: Kind,
    pub(super) payload: Payload,
}

/// The payload of a frame as it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Payload {
    Complete(Bytes),
    /// Longer than [`MESSAGE_LEN_MAX`]; this many bytes were passed over.
    Oversized(u32),
}

/// Reads the next frame; `None` at a clean end of the stream.
///
/// The payload's buffer grows with what arrives, not with what the header announces.
///
/// # Errors
///
/// [`io::ErrorKind::UnexpectedEof`] when the stream ends inside a frame, and what the stream itself
/// reports.
pub(super) async fn read(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let Some((len, stream_id, kind)) = read_header(reader).await? else {
        return Ok(None);
    };
    let mut body = reader.take(u64::from(len));
    let payload = if usize::try_from(len).is_ok_and(|len| len <= MESSAGE_LEN_MAX) {
        let mut payload = Vec::new();
        body.read_to_end(&mut payload).await?;
        Payload::Complete(payload.into())
    } else {
        tokio::io::copy(&mut body, &mut tokio::io::sink()).await?;
        Payload::Oversized(len)
    };
    if body.limit() > 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(Frame {
        stream_id,
        kind,
        payload,
    }))
}

async fn read_header(
    reader: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<(u32, u32, Kind)>> {
    let mut header = [0; HEADER_LEN];
    let mut unread = header.as_mut_slice();
    while !unread.is_empty() {
        let before = unread.len();
        if reader.read_buf(&mut unread).await? == 0 {
            return if before == HEADER_LEN {
                Ok(None)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
    }
    let [l0, l1, l2, l3, s0, s1, s2, s3, kind, _flags] = header;
    let len = u32::from_be_bytes([l0, l1, l2, l3]);
    let stream_id = u32::from_be_bytes([s0, s1, s2, s3]);
    Ok(Some((len, stream_id, kind.into())))
}

/// A frame ready to be written, or `None` when the message is longer than [`MESSAGE_LEN_MAX`].
///
/// Unary calls set no flags.
pub(super) fn encode(stream_id: u32, kind: Kind, message: &impl Message) -> Option<Vec<u8>> {
    let len = message.encoded_len();
    let len_field = u32::try_from(len).ok().filter(|_| len <= MESSAGE_LEN_MAX)?;
    let mut frame = Vec::with_capacity(HEADER_LEN + len);
    frame.extend_from_slice(&len_field.to_be_bytes());
    frame.extend_from_slice(&stream_id.to_be_bytes());
    frame.extend_from_slice(&[kind.into(), 0]);
    message.encode_raw(&mut frame);
    Some(frame)
}

/// Writes frames until every sender is gone.
///
/// # Errors
///
/// What the stream reports.
pub(super) async fn write_all(
    mut writer: impl AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    while let Some(frame) = frames.recv().await {
        writer.write_all(&frame).await?;
        writer.flush().await?;
    }
    Ok(())
}
