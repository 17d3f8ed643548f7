//! The client side of the Container Runtime Interface, as the kubelet has it.

mod connect;

pub use connect::{ConnectError, connect};

mod generated {
    #![expect(
        missing_docs,
        clippy::allow_attributes_without_reason,
        reason = "generated; the .proto files have the comments"
    )]
    tonic::include_proto!("runtime.v1");
}

/// Messages and clients of `runtime.v1`.
pub mod v1 {
    pub use super::generated::*;
}
