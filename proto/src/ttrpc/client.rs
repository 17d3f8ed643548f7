//! Calls services over a connection.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::sync::{mpsc, oneshot};

use super::frame::{self, Kind, Payload};
use super::message::{KeyValue, Request, Response};
use super::status::Status;

/// Requests that wait for the peer to read before callers have to wait.
const REQUEST_QUEUE_LEN: usize = 16;

/// How a call is made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CallOptions {
    timeout: Option<Duration>,
    metadata: Vec<KeyValue>,
}

impl CallOptions {
    /// No deadline, no metadata.
    pub fn new() -> Self {
        Self::default()
    }

    /// Fails the call with [`Code::DeadlineExceeded`](super::Code::DeadlineExceeded) after
    /// `timeout`; the peer is told the deadline.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sends a metadata value along.
    #[must_use]
    pub fn with_metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.push(KeyValue {
            key: key.into(),
            value: value.into(),
        });
        self
    }

    fn timeout_nano(&self) -> i64 {
        let nanos = self.timeout.map_or(0, |timeout| timeout.as_nanos().max(1));
        i64::try_from(nanos).unwrap_or(i64::MAX)
    }
}

/// One connection to a server, for any number of callers: clones share it. It closes when the last
/// clone is dropped.
#[derive(Clone, Debug)]
pub struct Client {
    requests: mpsc::Sender<Vec<u8>>,
    calls: Arc<Mutex<Calls>>,
}

impl Client {
    /// A client over `stream`. Must be called in a tokio runtime with its timer on: a task of its
    /// own does the reading and writing.
    pub fn new<S>(stream: S) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (requests, queue) = mpsc::channel(REQUEST_QUEUE_LEN);
        let calls = Arc::new(Mutex::new(Calls::default()));
        tokio::spawn(exchange(stream, queue, Arc::clone(&calls)));
        Self { requests, calls }
    }

    /// Calls a method.
    ///
    /// # Errors
    ///
    /// The peer's status; [`Code::Unavailable`](super::Code::Unavailable) when the connection has
    /// ended or ends before the reply; [`Code::DeadlineExceeded`](super::Code::DeadlineExceeded)
    /// when time runs out here; [`Code::ResourceExhausted`](super::Code::ResourceExhausted) for a
    /// message that is too long; [`Code::Internal`](super::Code::Internal) for a reply that cannot
    /// be decoded.
    pub async fn unary<Req: Message, Resp: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &Req,
        options: &CallOptions,
    ) -> Result<Resp, Status> {
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec().into(),
            timeout_nano: options.timeout_nano(),
            metadata: options.metadata.clone(),
        };
        let call = self.call(request);
        let payload = match options.timeout {
            None => call.await?,
            Some(timeout) => tokio::time::timeout(timeout, call).await.map_err(|_| {
                Status::deadline_exceeded(format!("{service}/{method} took over {timeout:?}"))
            })??,
        };
        Resp::decode(payload).map_err(|error| {
            Status::internal(format!(
                "{service}/{method} answered what cannot be decoded: {error}"
            ))
        })
    }

    /// Resolves when the connection has ended.
    pub async fn closed(&self) {
        self.requests.closed().await;
    }

    async fn call(&self, request: Request) -> Result<Bytes, Status> {
        let place = self
            .requests
            .reserve()
            .await
            .map_err(|_| connection_ended())?;
        let (pending, reply) = PendingCall::begin(&self.calls, &request, place)?;
        let result = reply.await.unwrap_or_else(|_| Err(connection_ended()));
        drop(pending);
        result
    }
}

fn connection_ended() -> Status {
    Status::unavailable("the connection has ended")
}

type Reply = Result<Bytes, Status>;

/// The calls of a connection that wait for their replies.
#[derive(Debug, Default)]
struct Calls {
    /// Number of streams begun; a client's stream ids are the odd numbers.
    begun: u32,
    ended: bool,
    waiting: HashMap<u32, oneshot::Sender<Reply>>,
}

fn lock(calls: &Mutex<Calls>) -> MutexGuard<'_, Calls> {
    // No code below panics while it holds the lock.
    calls.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A call that waits; dropping it forgets the call.
struct PendingCall<'a> {
    calls: &'a Mutex<Calls>,
    stream_id: u32,
}

impl<'a> PendingCall<'a> {
    /// Queues the request under the next stream id. Servers insist on rising ids, so both happen
    /// under one lock.
    fn begin(
        calls: &'a Mutex<Calls>,
        request: &Request,
        place: mpsc::Permit<'_, Vec<u8>>,
    ) -> Result<(Self, oneshot::Receiver<Reply>), Status> {
        let mut state = lock(calls);
        if state.ended {
            return Err(connection_ended());
        }
        let stream_id = state
            .begun
            .checked_mul(2)
            .and_then(|even| even.checked_add(1))
            .ok_or_else(|| Status::unavailable("the connection's stream ids are used up"))?;
        let frame = frame::encode(stream_id, Kind::Request, request)
            .ok_or_else(|| Status::resource_exhausted("the request exceeds the maximum length"))?;
        state.begun += 1;
        let (sender, receiver) = oneshot::channel();
        state.waiting.insert(stream_id, sender);
        place.send(frame);
        Ok((Self { calls, stream_id }, receiver))
    }
}

impl Drop for PendingCall<'_> {
    fn drop(&mut self) {
        lock(self.calls).waiting.remove(&self.stream_id);
    }
}

/// Moves frames until the connection or the last [`Client`] ends, then fails what still waits.
async fn exchange<S>(stream: S, queue: mpsc::Receiver<Vec<u8>>, calls: Arc<Mutex<Calls>>)
where
    S: AsyncRead + AsyncWrite,
{
    let (reader, writer) = tokio::io::split(stream);
    let result = tokio::select! {
        result = read_replies(reader, &calls) => result,
        result = frame::write_all(writer, queue) => result,
    };
    if let Err(error) = result {
        tracing::debug!(%error, "ttrpc connection ended");
    }
    let mut calls = lock(&calls);
    calls.ended = true;
    calls.waiting.clear();
}

async fn read_replies(reader: impl AsyncRead + Unpin, calls: &Mutex<Calls>) -> io::Result<()> {
    let mut reader = BufReader::new(reader);
    while let Some(frame) = frame::read(&mut reader).await? {
        if frame.kind != Kind::Response {
            continue;
        }
        // A reply that nobody waits for came after its caller gave up.
        let Some(caller) = lock(calls).waiting.remove(&frame.stream_id) else {
            continue;
        };
        // Fails only when the caller gives up just now.
        let _ = caller.send(reply(frame.payload));
    }
    Ok(())
}

fn reply(payload: Payload) -> Reply {
    let payload = match payload {
        Payload::Complete(payload) => payload,
        Payload::Oversized(len) => {
            return Err(Status::resource_exhausted(format!(
                "a reply of {len} bytes exceeds the maximum of {}",
                frame::MESSAGE_LEN_MAX
            )));
        }
    };
    let response = Response::decode(payload)
        .map_err(|error| Status::internal(format!("not a response: {error}")))?;
    match response.status {
        Some(status) if status.code != 0 => Err(status.into()),
        _ => Ok(response.payload),
    }
}
