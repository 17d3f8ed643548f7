//! From an OCI spec to what a pod's machine and guest are told. Pure: nothing here touches the
//! host, except that [`bundle`] reads one file and [`device_nodes`] looks at `/dev`.

pub mod binding;
pub mod block_devices;
pub mod bundle;
pub mod cgroup_path;
pub mod confinement;
pub mod cpu_set;
pub mod device_nodes;
pub mod files;
pub mod guest_spec;
pub mod hardware;
pub mod namespaces;
pub mod network;
pub mod resources;
pub mod room;
pub mod sandbox_spec;
pub mod sizing;
pub mod users;
pub mod volume;

pub use bundle::{Bundle, BundleError, Role};
