//! containerd's task service: decodes a call, hands it to the pod, encodes the answer.

mod convert;
mod status;
mod task;

pub use task::TaskService;
