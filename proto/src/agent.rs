//! What shim and agent share besides messages: ports, mount tags, guest paths.

/// Version of the agent's API; both sides must agree exactly.
pub const PROTOCOL_VERSION: u32 = 1;

/// Host port the agent connects to once, to send [`Ready`](crate::agent::v1::Ready).
pub const READY_PORT: u32 = 1024;
/// Guest port on which the agent serves its ttrpc API.
pub const AGENT_PORT: u32 = 1025;
/// Guest port that takes stdio streams, each opened by a stream token.
pub const STREAM_PORT: u32 = 1026;
/// Guest port that takes connections to the guest's services, each opened by a
/// [`ForwardRequest`](crate::agent::v1::ForwardRequest).
pub const FORWARD_PORT: u32 = 1027;

/// Length of a stream token in bytes.
pub const STREAM_TOKEN_LEN: usize = 16;

/// Tag of the pod's virtio-fs device.
pub const FS_TAG: &str = "podvisor";
/// Where the guest mounts that device; each export is a directory entry.
pub const SHARED_DIR: &str = "/run/podvisor/shared";
/// Where mirrored volumes live in the guest, one folder each.
pub const MIRROR_DIR: &str = "/run/podvisor/mirror";
/// Where volumes in the guest's memory are mounted, one folder each.
pub const MEMORY_DIR: &str = "/run/podvisor/memory";
/// The pod's shared memory file system, bound to every container's /dev/shm.
pub const SHM_DIR: &str = "/run/podvisor/shm";

mod generated {
    #![expect(missing_docs, reason = "generated; the .proto file has the comments")]
    include!(concat!(env!("OUT_DIR"), "/agent.rs"));
}

/// Messages and service of `podvisor.agent.v1`.
pub mod v1 {
    pub use super::generated::podvisor::agent::v1::*;
}
