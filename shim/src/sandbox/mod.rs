//! A pod: its guest and the tasks in it, owned by one task (`actor`) that takes requests and the
//! results of work under way in the order they come, and never waits.

mod actor;
mod changes;
mod controls;
mod create;
mod creation;
mod ending;
mod error;
mod growth;
mod hot_disk;
mod mirror;
mod pet;
mod pet_disks;
mod pet_exec;
mod pet_file_disk;
mod pet_mounts;
mod pet_network;
mod pet_plan;
mod pet_start;
mod pet_volumes;
mod plan;
mod process;
mod request;
mod task;
mod task_pid;
#[cfg(test)]
mod tests;
mod undo;
mod volumes;
mod work;

use tokio::sync::{mpsc, oneshot};

pub use actor::{Actor, Settings};
pub use create::ExecPlan;
pub use error::{TaskError, chain};
pub use plan::Placement;
pub use process::{ProcessState, Refusal};
pub use request::{CreateRequest, PodRequest, ProcessId, ProcessStatus, Reply, Request};

/// Sends requests to a pod. Clones are handles of the same one.
#[derive(Clone)]
pub struct SandboxHandle {
    inbox: mpsc::UnboundedSender<work::Message>,
}

impl SandboxHandle {
    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// What the pod says; [`TaskError::Gone`] when it is no more.
    pub async fn call<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, TaskError> {
        let (reply, answer) = oneshot::channel();
        let message = work::Message::Request(request(reply));
        self.inbox.send(message).map_err(|_| TaskError::Gone)?;
        answer.await.map_err(|_| TaskError::Gone)?
    }
}
