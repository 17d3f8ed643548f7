//! containerd's services, of tasks and of sandboxes: decode a call, hand it to the pod, encode the
//! answer.

mod convert;
mod sandbox;
mod status;
mod task;

pub use sandbox::SandboxService;
pub use task::TaskService;
