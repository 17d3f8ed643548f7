//! The envelopes of a call (request.proto of github.com/containerd/ttrpc, google/rpc/status.proto).

use prost::Message;

use super::status::Status;

/// Payload of a request frame.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Request {
    #[prost(string, tag = "1")]
    pub(super) service: String,
    #[prost(string, tag = "2")]
    pub(super) method: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) payload: bytes::Bytes,
    /// Nanoseconds until the caller gives up; 0 for never.
    #[prost(int64, tag = "4")]
    pub(super) timeout_nano: i64,
    #[prost(message, repeated, tag = "5")]
    pub(super) metadata: Vec<KeyValue>,
}

/// One value of a metadata key.
#[derive(Clone, PartialEq, Message)]
pub(super) struct KeyValue {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(string, tag = "2")]
    pub(super) value: String,
}

/// Payload of a response frame.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Response {
    /// Absent, or with code 0: the call succeeded.
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<RpcStatus>,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) payload: bytes::Bytes,
}

/// google.rpc.Status without its details.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
}

impl From<Status> for RpcStatus {
    fn from(status: Status) -> Self {
        Self {
            code: status.code().into(),
            message: status.message().to_owned(),
        }
    }
}

impl From<RpcStatus> for Status {
    fn from(status: RpcStatus) -> Self {
        Self::new(status.code.into(), status.message)
    }
}
