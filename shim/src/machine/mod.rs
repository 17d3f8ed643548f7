//! Machine pods: a container that is a machine of its own, with a disk that it boots. Here is what
//! such a machine consists of; what happens to it over its life is in `sandbox`.

pub mod disks;
pub mod identity;
pub mod image;
pub mod seed;
pub mod source;
pub mod store;
