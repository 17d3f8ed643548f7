//! Gives a machine its volumes, whenever our agent has come up in its own system.

use podvisor_proto::agent::v1::{AgentClient, MountVolumesRequest, VolumeMount};
use tokio::task::AbortHandle;

use super::error::{TaskError, chain};
use super::mirror;
use super::pet_volumes::{Content, MachineVolume};
use super::volumes::memory_volume;

/// Keeps the machine's copies equal while this lives.
#[derive(Default)]
pub(super) struct Followers(Vec<AbortHandle>);

impl Drop for Followers {
    fn drop(&mut self) {
        for follower in &self.0 {
            follower.abort();
        }
    }
}

/// Mounts `volumes` at their places. One that cannot be mounted leaves the others alone: the machine
/// goes on without it, and says so on its console.
pub(super) async fn mount(volumes: &[MachineVolume], agent: &AgentClient) -> Followers {
    let mut followers = Followers::default();
    if volumes.is_empty() {
        return followers;
    }
    let mut request = MountVolumesRequest::default();
    for volume in volumes {
        let source = match prepare(volume, agent, &mut followers).await {
            Ok(source) => source,
            Err(error) => {
                let target = &volume.target;
                tracing::error!(target, error = chain(&error), "a machine's volume");
                continue;
            }
        };
        request.mounts.push(VolumeMount {
            source,
            target: volume.target.clone(),
            read_only: volume.read_only,
        });
    }
    match agent.mount_volumes(request).await {
        Ok(mounted) => {
            for failure in mounted.failures {
                tracing::error!(failure, "a machine's volume is not mounted");
            }
        }
        Err(status) => tracing::error!(%status, "a machine's volumes are not mounted"),
    }
    followers
}

/// Has the machine make what is not shared with it; yields where it has the volume then.
async fn prepare(
    volume: &MachineVolume,
    agent: &AgentClient,
    followers: &mut Followers,
) -> Result<String, TaskError> {
    let mut source = volume.content.source();
    match &volume.content {
        Content::At(_) => {}
        Content::Mirror {
            original,
            name,
            shared,
        } => match mirror::begin(original.clone(), name, agent).await {
            Ok(follower) => followers.0.push(follower),
            Err(TaskError::Mirror(error)) => {
                let target = &volume.target;
                tracing::info!(target, error = chain(&error), "a volume is shared");
                source.clone_from(shared);
            }
            Err(error) => return Err(error),
        },
        Content::Memory { origin, name } => {
            agent
                .make_volume(memory_volume(name, origin, None)?)
                .await?;
        }
    }
    let text = source.into_os_string().into_string();
    text.map_err(|path| TaskError::Invalid(format!("{} is not UTF-8", path.display())))
}
