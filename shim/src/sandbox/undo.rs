//! What a container was given, to be taken back in reverse: when its creation fails, and when it
//! is deleted.

use std::path::PathBuf;
use std::sync::Arc;

use podvisor_proto::agent::v1::{AgentClient, DeleteProcessRequest};
use podvisor_proto::ttrpc::Code;

use super::request::ProcessId;
use super::volumes::{VolumeKey, Volumes, remove_export};
use crate::guest::Machine;
use crate::host::HostOps;
use crate::pod::binding::Binding;
use crate::pod::room::Room;

/// What takes things back.
#[derive(Clone)]
pub struct Hands {
    /// Privileged work.
    pub host: Arc<dyn HostOps>,
    /// The guest's machine.
    pub machine: Arc<dyn Machine>,
    /// The guest's agent.
    pub agent: AgentClient,
    /// The guest's volumes.
    pub volumes: Volumes,
    /// The machine's size.
    pub room: Room,
    /// How it is bound to its host.
    pub binding: Binding,
}

/// One thing to take back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undo {
    /// A mount.
    Unmount(PathBuf),
    /// An export.
    RemoveExport(String),
    /// One use of a volume.
    ReleaseVolume(VolumeKey),
    /// The container in the guest.
    DeleteContainer(String),
}

/// Takes things back, the last first. What fails is logged: the rest is still to be done.
/// Of a guest that is gone only what is on the host is taken back.
pub async fn undo_all(host: &Arc<dyn HostOps>, hands: Option<&Hands>, done: Vec<Undo>) {
    for step in done.into_iter().rev() {
        match (step, hands) {
            (Undo::Unmount(target), _) => {
                let host = Arc::clone(host);
                let unmounted = tokio::task::spawn_blocking(move || host.unmount(&target)).await;
                if let Ok(Err(error)) = unmounted {
                    tracing::warn!(error = super::error::chain(&error), "a mount is left");
                }
            }
            (_, None) => {}
            (Undo::RemoveExport(name), Some(hands)) => remove_export(&hands.machine, name).await,
            (Undo::ReleaseVolume(key), Some(hands)) => hands.volumes.release(key).await,
            (Undo::DeleteContainer(id), Some(hands)) => {
                delete_process(&hands.agent, ProcessId::init(&id)).await;
            }
        }
    }
}

/// Takes a process in the guest back, an init with its container.
pub(super) async fn delete_process(agent: &AgentClient, process: ProcessId) {
    let request = DeleteProcessRequest {
        container_id: process.container.clone(),
        exec_id: process.exec.clone(),
    };
    match agent.delete_process(request).await {
        Ok(_) => {}
        // It was never made, or the guest has ended and with it all that was in it.
        Err(status) if matches!(status.code(), Code::NotFound | Code::Unavailable) => {
            tracing::debug!(%process, %status, "there is nothing to delete in the guest");
        }
        Err(status) => tracing::warn!(%process, %status, "it is left in the guest"),
    }
}
