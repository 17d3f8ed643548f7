//! Serves services on a connection.

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::frame::{self, Frame, Kind, Payload};
use super::message::{Request, Response};
use super::service::{CallFuture, Service};
use super::status::Status;
use prost::Message;

/// Most requests that one connection may have under way. Waits stay for a container's whole life,
/// so a pod's connection holds one per process; what goes beyond is answered
/// [`Code::ResourceExhausted`](super::Code::ResourceExhausted) and the connection goes on.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 1024;

/// Replies that wait for the peer to read before handlers have to wait.
const REPLY_QUEUE_LEN: usize = 16;

/// A set of services, served on any number of connections. Clones share the services.
#[derive(Clone, Default)]
pub struct Server {
    services: HashMap<&'static str, Arc<dyn Service>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.services.keys()).finish()
    }
}

impl Server {
    /// A server without services.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a service; a later one of the same name takes its place.
    #[must_use]
    pub fn with_service(mut self, service: impl Service) -> Self {
        self.services.insert(service.name(), Arc::new(service));
        self
    }

    /// Serves a connection until the peer closes it. Must run in a tokio runtime with its timer on.
    ///
    /// Requests run side by side, each in a task of its own. A handler always runs to its end,
    /// also when its deadline passes or the connection ends: it may own state that half a call
    /// would leave broken. Only its reply is dropped then.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::UnexpectedEof`] when the stream ends inside a frame, and what the stream
    /// itself reports. Whatever a peer may send, requests that came before are not disturbed.
    pub async fn serve<S>(&self, stream: S) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let (reader, writer) = tokio::io::split(stream);
        let (replies, queue) = mpsc::channel(REPLY_QUEUE_LEN);
        tokio::select! {
            result = self.read_requests(reader, replies) => result,
            result = frame::write_all(writer, queue) => result,
        }
    }

    async fn read_requests(
        &self,
        reader: impl AsyncRead + Unpin,
        replies: mpsc::Sender<Vec<u8>>,
    ) -> io::Result<()> {
        let mut reader = BufReader::new(reader);
        let mut admission = Admission::new();
        while let Some(frame) = frame::read(&mut reader).await? {
            if frame.kind != Kind::Request && frame.kind != Kind::Data {
                // The protocol asks to pass over kinds that are not known.
                continue;
            }
            let stream_id = frame.stream_id;
            match admission.admit(frame) {
                Ok((request, permit)) => {
                    let reply = ReplySender {
                        stream_id,
                        replies: replies.clone(),
                    };
                    let timeout = request.timeout();
                    let call = self.call(request);
                    tokio::spawn(async move {
                        run(call, timeout, reply).await;
                        drop(permit);
                    });
                }
                Err(status) => {
                    ReplySender {
                        stream_id,
                        replies: replies.clone(),
                    }
                    .send(Err(status))
                    .await;
                }
            }
        }
        Ok(())
    }

    fn call(&self, request: Request) -> CallFuture {
        match self.services.get(request.service.as_str()) {
            Some(service) => service.call(&request.method, request.payload),
            None => {
                let status = Status::unimplemented(format!("no service {}", request.service));
                Box::pin(std::future::ready(Err(status)))
            }
        }
    }
}

impl Request {
    fn timeout(&self) -> Option<Duration> {
        u64::try_from(self.timeout_nano)
            .ok()
            .filter(|&nanos| nanos > 0)
            .map(Duration::from_nanos)
    }
}

/// Decides which frames of a connection become calls.
struct Admission {
    last_stream_id: u32,
    in_flight: Arc<Semaphore>,
}

impl Admission {
    fn new() -> Self {
        Self {
            last_stream_id: 0,
            in_flight: Arc::new(Semaphore::new(REQUESTS_IN_FLIGHT_MAX)),
        }
    }

    /// The request in `frame` and its place among those under way.
    fn admit(&mut self, frame: Frame) -> Result<(Request, OwnedSemaphorePermit), Status> {
        let Frame {
            stream_id,
            kind,
            payload,
        } = frame;
        let payload = match payload {
            Payload::Complete(payload) => payload,
            Payload::Oversized(len) => {
                return Err(Status::resource_exhausted(format!(
                    "a message of {len} bytes exceeds the maximum of {}",
                    frame::MESSAGE_LEN_MAX
                )));
            }
        };
        if kind == Kind::Data {
            return Err(Status::invalid_argument("streaming calls are not served"));
        }
        if stream_id % 2 == 0 || stream_id <= self.last_stream_id {
            return Err(Status::invalid_argument(format!(
                "stream id {stream_id} is not odd and higher than {}",
                self.last_stream_id
            )));
        }
        self.last_stream_id = stream_id;
        let request = Request::decode(payload)
            .map_err(|error| Status::invalid_argument(format!("not a request: {error}")))?;
        let permit = Arc::clone(&self.in_flight)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted("too many requests under way"))?;
        Ok((request, permit))
    }
}

/// Where the reply to one request goes.
struct ReplySender {
    stream_id: u32,
    replies: mpsc::Sender<Vec<u8>>,
}

impl ReplySender {
    /// Sends the reply; drops it when the connection is gone.
    async fn send(&self, result: Result<Vec<u8>, Status>) {
        let response = match result {
            Ok(payload) => Response {
                status: None,
                payload: payload.into(),
            },
            Err(status) => failure(status),
        };
        let frame = frame::encode(self.stream_id, Kind::Response, &response).or_else(|| {
            let status = Status::resource_exhausted("the response exceeds the maximum length");
            frame::encode(self.stream_id, Kind::Response, &failure(status))
        });
        if let Some(frame) = frame {
            // Fails only when the connection is gone.
            let _ = self.replies.send(frame).await;
        }
    }
}

fn failure(status: Status) -> Response {
    Response {
        status: Some(status.into()),
        payload: bytes::Bytes::new(),
    }
}

/// Runs a call to its end and replies with its result, or earlier when its deadline passes.
async fn run(call: CallFuture, timeout: Option<Duration>, reply: ReplySender) {
    let mut call = pin!(catch_panic(call));
    let Some(timeout) = timeout else {
        return reply.send(call.await).await;
    };
    match tokio::time::timeout(timeout, call.as_mut()).await {
        Ok(result) => reply.send(result).await,
        Err(_elapsed) => {
            reply
                .send(Err(Status::deadline_exceeded("the deadline has passed")))
                .await;
            // Nobody waits for it any more, but it shall not be cut off.
            let _ = call.await;
        }
    }
}

/// Turns a handler's panic into a failure of its call alone.
async fn catch_panic(mut call: CallFuture) -> Result<Vec<u8>, Status> {
    poll_fn(|context| {
        catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(context)))
            .unwrap_or_else(|_panic| Poll::Ready(Err(Status::internal("the handler panicked"))))
    })
    .await
}
