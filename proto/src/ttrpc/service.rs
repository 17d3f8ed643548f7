//! What a server serves: calls by method name, messages still encoded.

use std::future::{Future, ready};
use std::pin::Pin;

use bytes::Bytes;
use prost::Message;

use super::status::Status;

/// A call under way; resolves to the encoded response.
pub type CallFuture = Pin<Box<dyn Future<Output = Result<Vec<u8>, Status>> + Send>>;

/// A named set of methods. Generated for every service of the .proto files.
pub trait Service: Send + Sync + 'static {
    /// Full name on the wire, such as `containerd.task.v3.Task`.
    fn name(&self) -> &'static str;

    /// Begins a call; `payload` is the encoded request.
    ///
    /// An unknown method answers [`Code::Unimplemented`](super::Code::Unimplemented), a payload
    /// that is no request of the method
    /// [`Code::InvalidArgument`](super::Code::InvalidArgument).
    fn call(&self, method: &str, payload: Bytes) -> CallFuture;
}

/// Decodes a request, lets `handler` answer it and encodes the response.
#[cfg(any(feature = "agent", feature = "containerd"))]
pub(crate) fn answer<Req, Resp, Fut>(
    payload: Bytes,
    handler: impl FnOnce(Req) -> Fut + Send + 'static,
) -> CallFuture
where
    Req: Message + Default + 'static,
    Resp: Message,
    Fut: Future<Output = Result<Resp, Status>> + Send,
{
    let request = match Req::decode(payload) {
        Ok(request) => request,
        Err(error) => {
            let status = Status::invalid_argument(format!("request cannot be decoded: {error}"));
            return Box::pin(ready(Err(status)));
        }
    };
    Box::pin(async move { Ok(handler(request).await?.encode_to_vec()) })
}

/// The answer to a call of a method that the service lacks.
#[cfg(any(feature = "agent", feature = "containerd"))]
pub(crate) fn unknown_method(service: &str, method: &str) -> CallFuture {
    let status = Status::unimplemented(format!("{service} has no method {method}"));
    Box::pin(ready(Err(status)))
}
