//! What containerd asks of a shim, and what a shim tells containerd.

mod any;
mod timestamp;

pub use any::{any, any_of};
pub use prost_types::{Any, Timestamp};
pub use timestamp::{now, timestamp, timestamp_from_nanos};

pub use crate::cgroups;

mod generated {
    #![expect(missing_docs, reason = "generated; the .proto files have the comments")]
    include!(concat!(env!("OUT_DIR"), "/containerd.rs"));
}

/// The task service, which a shim serves for every container.
pub mod task {
    pub use super::generated::containerd::task::v3::*;
    pub use super::generated::containerd::v1::types::{ProcessInfo, Status};

    /// Name of the task service's version 2: the same methods and messages as version 3, which
    /// [`TASK_SERVICE_NAME`] names. Register both:
    /// `TaskServer::new(…)` and `TaskServer::named(TASK_V2_SERVICE_NAME, …)`.
    pub const TASK_V2_SERVICE_NAME: &str = "containerd.task.v2.Task";
}

/// The sandbox service, which a shim serves for its pod when containerd's sandboxer is "shim".
pub mod sandbox {
    pub use super::generated::containerd::runtime::sandbox::v1::*;
}

/// CRI's description of a pod (`runtime.v1.PodSandboxConfig`), which a shim that serves
/// [`sandbox`] is created with.
pub mod pod_config {
    #![expect(missing_docs, reason = "generated; the .proto files have the comments")]
    include!(concat!(env!("OUT_DIR"), "/pod_config/runtime.v1.rs"));
}

/// Events of tasks, and the service of containerd that takes them.
pub mod events {
    pub use super::generated::containerd::events::*;
    pub use super::generated::containerd::services::events::ttrpc::v1::*;
    pub use super::generated::containerd::types::Envelope;

    /// Metadata key that tells containerd the namespace of a forwarded event (pkg/namespaces).
    pub const NAMESPACE_METADATA_KEY: &str = "containerd-namespace-ttrpc";
}

/// Types that several services share.
pub mod types {
    pub use super::generated::containerd::types::{
        Metric, Mount, Platform, RuntimeInfo, RuntimeRequest, RuntimeVersion,
    };
}

/// What containerd 2.3 and later exchange with a shim's `start` over stdin and stdout.
pub mod bootstrap {
    pub use super::generated::containerd::runtime::bootstrap::v1::*;
}

/// Options of a runtime that containerd does not know.
pub mod runtimeoptions {
    pub use super::generated::runtimeoptions::v1::*;
}

/// Options of a handler of runc's type.
pub mod runc_options {
    pub use super::generated::containerd::runc::v1::*;
}
