//! What the node suite is built from: pods, containers and executions on the node's containerd,
//! driven over CRI as the kubelet does.
//!
//! Everything here blocks, fails with an error that says what was asked, and removes what it
//! made when it goes out of scope.

pub mod cni;
pub mod console;
pub mod container;
pub mod container_builder;
pub mod cri;
pub mod initial_image;
pub mod log_file;
pub mod loop_device;
pub mod node;
pub mod pod;
mod pod_cgroup;
pub mod registry;
pub mod streaming;
pub mod task;
pub mod vsock;
pub mod wait;

pub use cni::PodNetworks;
pub use console::Console;
pub use container::{Container, ExecOutput};
pub use container_builder::ContainerBuilder;
pub use cri::Cri;
pub use initial_image::InitialImage;
pub use loop_device::LoopDevice;
pub use pod::{Handler, Pod, PodBuilder};
pub use streaming::Session;
