//! Gives a machine its volumes, whenever our agent has come up in its own system.

use podvisor_proto::agent::v1::{AgentClient, MountVolumesRequest, VolumeMount};
use tokio::task::AbortHandle;

use super::error::{TaskError, chain};
use super::mirror;
use super::pet_volumes::{Content, MachineVolume};
use super::volumes::memory_volume;

/// How often it is logged that volumes are not mounted: the machine can have it happen at will.
const COMPLAINTS_MAX: u32 = 16;
/// Characters of what is logged then.
const COMPLAINT_LEN_MAX: usize = 1000;

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

/// A machine's volumes, and how often they were not all mounted.
pub(super) struct Mounts {
    volumes: Vec<MachineVolume>,
    complaints: u32,
}

impl Mounts {
    /// Volumes that are nowhere yet.
    pub fn new(volumes: Vec<MachineVolume>) -> Self {
        Self {
            volumes,
            complaints: 0,
        }
    }

    /// Mounts them at their places. What cannot be mounted leaves the others alone: the machine goes
    /// on without it, and says so on its console.
    pub async fn mount(&mut self, agent: &AgentClient) -> Followers {
        if self.volumes.is_empty() {
            return Followers::default();
        }
        let (followers, failures) = mount(&self.volumes, agent).await;
        if !failures.is_empty() && self.complaints < COMPLAINTS_MAX {
            self.complaints += 1;
            let failures = shortened(&failures.join("; "));
            tracing::error!(failures, "volumes of the machine are not mounted");
        }
        followers
    }
}

/// What of a machine's own words is logged.
fn shortened(text: &str) -> String {
    let shown = text.chars().filter(|c| !c.is_control());
    shown.take(COMPLAINT_LEN_MAX).collect()
}

/// Mounts volumes; yields what is wrong with those that are not mounted.
async fn mount(volumes: &[MachineVolume], agent: &AgentClient) -> (Followers, Vec<String>) {
    let (mut followers, mut failures) = (Followers::default(), Vec::new());
    let mut request = MountVolumesRequest::default();
    for volume in volumes {
        let source = match prepare(volume, agent, &mut followers).await {
            Ok(source) => source,
            Err(error) => {
                failures.push(format!("{}: {}", volume.target, chain(&error)));
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
        Ok(mounted) => failures.extend(mounted.failures),
        Err(status) => failures.push(status.to_string()),
    }
    (followers, failures)
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
