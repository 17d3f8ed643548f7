//! The host's folders and files that a pod's guest is given: one task owns them, so that
//! containers that share a volume share one export of it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use podvisor_devices::fs::{CachePolicy, ExportOptions};
use podvisor_proto::agent::v1::{AgentClient, ApplyVolumeRequest, RemoveVolumeRequest};
use podvisor_proto::agent::{MIRROR_DIR, SHARED_DIR, SHM_DIR};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::error::TaskError;
use super::mirror::{self, MirrorError};
use crate::guest::Machine;
use crate::host::HostOps;
use crate::pod::volume::{Source, is_atomically_written};

/// How long a guest may trust what it knows of a folder that others change as well.
const SHARED_CACHE: Duration = Duration::from_secs(1);

/// Names a volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VolumeKey {
    path: PathBuf,
    read_only: bool,
}

/// A volume that a container uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Where it is in the guest.
    pub guest_path: PathBuf,
    /// What to release it by; None when there is nothing to release.
    pub key: Option<VolumeKey>,
}

enum Order {
    Acquire(Source, oneshot::Sender<Result<Placed, TaskError>>),
    Release(VolumeKey, oneshot::Sender<()>),
}

/// The volumes of one guest. The owning task ends with the last clone.
#[derive(Clone)]
pub struct Volumes {
    orders: mpsc::UnboundedSender<Order>,
}

impl Volumes {
    /// Volumes of a guest that has none yet.
    pub fn spawn(machine: Arc<dyn Machine>, agent: AgentClient, host: Arc<dyn HostOps>) -> Self {
        let (orders, received) = mpsc::unbounded_channel();
        let owner = Owner {
            machine,
            agent,
            host,
            volumes: HashMap::new(),
            made: 0,
        };
        tokio::spawn(owner.run(received));
        Self { orders }
    }

    /// Gives the guest a volume, once for all that use it.
    ///
    /// # Errors
    /// [`TaskError`]; the guest has not got it then.
    pub async fn acquire(&self, source: Source) -> Result<Placed, TaskError> {
        let (reply, answer) = oneshot::channel();
        let _ = self.orders.send(Order::Acquire(source, reply));
        answer.await.map_err(|_| TaskError::Gone)?
    }

    /// Gives up one use of a volume; the last one takes it from the guest.
    pub async fn release(&self, key: VolumeKey) {
        let (reply, answer) = oneshot::channel();
        let _ = self.orders.send(Order::Release(key, reply));
        let _ = answer.await;
    }
}

/// How a volume is in the guest.
enum Kind {
    /// Under the shared folder.
    Export(String),
    /// Under the folder of mirrors, kept equal by a task.
    Mirror(String, AbortHandle),
}

struct Volume {
    kind: Kind,
    users: usize,
}

struct Owner {
    machine: Arc<dyn Machine>,
    agent: AgentClient,
    host: Arc<dyn HostOps>,
    volumes: HashMap<VolumeKey, Volume>,
    /// Volumes made so far, for names that are never used twice.
    made: u64,
}

impl Owner {
    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        while let Some(order) = orders.recv().await {
            match order {
                Order::Acquire(source, reply) => {
                    let placed = self.acquire(source).await;
                    if let Err(Ok(Placed { key: Some(key), .. })) = reply.send(placed) {
                        // Who asked is gone.
                        self.release(&key).await;
                    }
                }
                Order::Release(key, reply) => {
                    self.release(&key).await;
                    let _ = reply.send(());
                }
            }
        }
        for volume in self.volumes.into_values() {
            if let Kind::Mirror(_, follower) = volume.kind {
                follower.abort();
            }
        }
    }

    async fn acquire(&mut self, source: Source) -> Result<Placed, TaskError> {
        let Source::Export { path, read_only } = source else {
            return Ok(Placed {
                guest_path: SHM_DIR.into(),
                key: None,
            });
        };
        let key = VolumeKey { path, read_only };
        if !self.volumes.contains_key(&key) {
            let kind = self.make(&key).await?;
            self.volumes.insert(key.clone(), Volume { kind, users: 0 });
        }
        let volume = self.volumes.get_mut(&key).ok_or(TaskError::Gone)?;
        volume.users += 1;
        let guest_path = match &volume.kind {
            Kind::Export(name) => Path::new(SHARED_DIR).join(name),
            Kind::Mirror(name, _) => Path::new(MIRROR_DIR).join(name),
        };
        Ok(Placed {
            guest_path,
            key: Some(key),
        })
    }

    async fn make(&mut self, key: &VolumeKey) -> Result<Kind, TaskError> {
        self.made += 1;
        let name = format!("volume-{}", self.made);
        if is_atomically_written(&key.path) {
            match self.mirror(key, &name).await {
                Err(TaskError::Mirror(MirrorError::TooLarge(_))) => {}
                other => return other,
            }
        }
        let folder = self.host.open_path(&key.path)?;
        let options = ExportOptions {
            read_only: key.read_only,
            cache: CachePolicy::Bounded(SHARED_CACHE),
        };
        self.machine.add_export(&name, folder, options)?;
        Ok(Kind::Export(name))
    }

    async fn mirror(&self, key: &VolumeKey, name: &str) -> Result<Kind, TaskError> {
        // Watched before it is read: no change is missed.
        let watch = mirror::Watch::new(&key.path)?;
        let entries = mirror::read_volume(&key.path)?;
        let request = ApplyVolumeRequest {
            volume_id: name.to_owned(),
            entries,
        };
        self.agent.apply_volume(request).await?;
        let follower = mirror::follow(watch, key.path.clone(), name.to_owned(), self.agent.clone());
        Ok(Kind::Mirror(
            name.to_owned(),
            tokio::spawn(follower).abort_handle(),
        ))
    }

    async fn release(&mut self, key: &VolumeKey) {
        let Some(volume) = self.volumes.get_mut(key) else {
            return;
        };
        volume.users -= 1;
        if volume.users > 0 {
            return;
        }
        match self.volumes.remove(key).map(|volume| volume.kind) {
            Some(Kind::Mirror(name, follower)) => {
                follower.abort();
                // A guest that has ended has nothing to forget.
                let _ = self
                    .agent
                    .remove_volume(RemoveVolumeRequest { volume_id: name })
                    .await;
            }
            Some(Kind::Export(name)) => remove_export(&self.machine, name).await,
            None => {}
        }
    }
}

/// Takes an export from the guest; waits for its requests on a thread that may wait.
pub async fn remove_export(machine: &Arc<dyn Machine>, name: String) {
    let machine = Arc::clone(machine);
    let removed = tokio::task::spawn_blocking(move || machine.remove_export(&name)).await;
    if let Ok(Err(error)) = removed {
        tracing::warn!(%error, "an export is still in use");
    }
}
