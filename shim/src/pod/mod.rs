//! From an OCI spec to what a pod's machine and guest are told. Pure: nothing here touches the
//! host, except that [`bundle`] reads one file.

pub mod bundle;
pub mod cgroup_path;
pub mod guest_spec;
pub mod network;
pub mod sizing;
pub mod volume;

pub use bundle::{Bundle, BundleError, Role};
