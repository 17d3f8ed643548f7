//! The host's folders and files that a pod's guest is given: one task owns them, so that
//! containers that share a volume share one export of it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use podvisor_devices::fs::{CachePolicy, ExportOptions, Writes};
use podvisor_proto::agent::v1::{
    self as agent, AgentClient, MakeVolumeRequest, RemoveVolumeRequest,
};
use podvisor_proto::agent::{MEMORY_DIR, MIRROR_DIR, SHARED_DIR, SHM_DIR};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::error::TaskError;
use super::hot_disk::HotDisk;
use super::mirror::{self, MirrorError, Original};
use crate::guest::Machine;
use crate::host::{DiskRequest, HostOps, MemoryOrigin, Ownership, VolumeOrigin, VolumeRequest};
use crate::pod::block_devices::GuestNumber;
use crate::pod::guest_spec::GuestMount;
use crate::pod::users::UserMaps;
use crate::pod::volume::{
    Access, Propagation, Source, VolumeError, guest_device, is_atomically_written, part_of,
};

/// How long a guest may trust what it knows of a folder that others change as well.
pub(super) const SHARED_CACHE: Duration = Duration::from_secs(1);

/// Names a volume that is taken from the guest with its last user.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum VolumeKey {
    /// A folder or file that the guest sees on the host.
    Folder(FolderKey),
    /// A folder that the guest has a copy of.
    Mirror(Original),
    /// A block device.
    Disk(DiskRequest),
}

/// Names a folder or file. All containers of a pod share one export of it, and with it one cache
/// and one set of locks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FolderKey {
    volume: VolumeRequest,
    /// Whether mounts below are writable where the volume itself is not: then it cannot be one
    /// with what other containers may write.
    only_mounts_below: bool,
}

/// A volume that a container uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// What the container mounts.
    pub mount: GuestMount,
    /// What to release it by; None when there is nothing to release.
    pub key: Option<VolumeKey>,
}

impl Placed {
    /// What stays in the guest for as long as it lives.
    fn lasting(source: PathBuf) -> Self {
        Self {
            mount: GuestMount {
                source,
                host_keeps_read_only: false,
            },
            key: None,
        }
    }
}

/// A block device that a container uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedDisk {
    /// Its number in the guest.
    pub number: GuestNumber,
    /// What to release it by.
    pub key: VolumeKey,
}

enum Order {
    Acquire(Source, oneshot::Sender<Result<Placed, TaskError>>),
    AcquireDisk(DiskRequest, oneshot::Sender<Result<PlacedDisk, TaskError>>),
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
            memory: HashMap::new(),
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

    /// Gives the guest a disk, once for all that use it.
    ///
    /// # Errors
    /// [`TaskError`]; the guest has not got it then.
    pub async fn acquire_disk(&self, disk: DiskRequest) -> Result<PlacedDisk, TaskError> {
        let (reply, answer) = oneshot::channel();
        let _ = self.orders.send(Order::AcquireDisk(disk, reply));
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
    Export,
    /// Under the folder of mirrors, kept equal by a task.
    Mirror(AbortHandle),
    /// On the guest's PCI bus.
    Disk(GuestNumber),
}

struct Volume {
    name: String,
    kind: Kind,
    users: usize,
}

struct Owner {
    machine: Arc<dyn Machine>,
    agent: AgentClient,
    host: Arc<dyn HostOps>,
    volumes: HashMap<VolumeKey, Volume>,
    /// Names of the volumes in the guest's memory, by the device of the host's file system.
    memory: HashMap<String, String>,
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
                Order::AcquireDisk(disk, reply) => {
                    let placed = self.acquire_disk(disk).await;
                    if let Err(Ok(PlacedDisk { key, .. })) = reply.send(placed) {
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
            if let Kind::Mirror(follower) = volume.kind {
                follower.abort();
            }
        }
    }

    async fn acquire(&mut self, source: Source) -> Result<Placed, TaskError> {
        let Source::Host {
            path,
            access,
            propagation,
            owners,
        } = source
        else {
            return Ok(Placed::lasting(SHM_DIR.into()));
        };
        // The kubelet mounts these read-only; what a pod may write to has to reach the host.
        if access != Access::ReadWrite && is_atomically_written(&path) {
            let original = Original {
                folder: path.clone(),
                owners: owners.clone(),
            };
            match self.acquire_mirror(original).await {
                Err(TaskError::Mirror(MirrorError::TooLarge(_))) => {}
                other => return other,
            }
        }
        match self.inspect(path.clone()).await? {
            VolumeOrigin::Memory(memory) => self.acquire_memory(memory, owners).await,
            VolumeOrigin::EmptyDir { folder, below } => {
                let volume = VolumeRequest {
                    path: folder,
                    propagation: Propagation::Private,
                    owners,
                };
                let key = FolderKey {
                    volume,
                    only_mounts_below: false,
                };
                self.acquire_export(key, &below, access, CachePolicy::Always)
            }
            VolumeOrigin::Shared { has_mounts } => {
                let volume = VolumeRequest {
                    path,
                    propagation,
                    owners,
                };
                let key = FolderKey {
                    volume,
                    only_mounts_below: has_mounts && access == Access::ReadOnly,
                };
                let cache = CachePolicy::Bounded(SHARED_CACHE);
                self.acquire_export(key, Path::new(""), access, cache)
            }
            VolumeOrigin::Device { block: true, .. } => Err(VolumeError::BlockDevice(path).into()),
            VolumeOrigin::Device { major, minor, .. } => match guest_device(major, minor) {
                Some(device) => Ok(Placed::lasting(device.into())),
                None => Err(VolumeError::CharacterDevice(path).into()),
            },
            VolumeOrigin::Socket => Err(VolumeError::Socket(path).into()),
            VolumeOrigin::Pipe => Err(VolumeError::Pipe(path).into()),
        }
    }

    /// Looks at a volume on a thread that may wait: its file system can be slow.
    async fn inspect(&self, path: PathBuf) -> Result<VolumeOrigin, TaskError> {
        let host = Arc::clone(&self.host);
        Ok(tokio::task::spawn_blocking(move || host.inspect_volume(&path)).await??)
    }

    fn acquire_export(
        &mut self,
        key: FolderKey,
        below: &Path,
        access: Access,
        cache: CachePolicy,
    ) -> Result<Placed, TaskError> {
        let writes = writes(access, key.only_mounts_below);
        let only_mounts_below = key.only_mounts_below;
        let volume = key.volume.clone();
        let key = VolumeKey::Folder(key);
        if let Some(known) = self.volumes.get(&key) {
            self.machine.allow_writes(&known.name, writes)?;
        }
        let name = match self.share(&key) {
            Some(known) => known.name.clone(),
            None => {
                let name = self.next_name();
                let opened = self.host.open_volume(&volume)?;
                let options = ExportOptions { writes, cache };
                self.machine.add_export(&name, opened, options)?;
                self.insert(key.clone(), name.clone(), Kind::Export);
                name
            }
        };
        Ok(Placed {
            mount: GuestMount {
                source: part_of(&Path::new(SHARED_DIR).join(&name), below),
                host_keeps_read_only: only_mounts_below,
            },
            key: Some(key),
        })
    }

    async fn acquire_mirror(&mut self, original: Original) -> Result<Placed, TaskError> {
        let key = VolumeKey::Mirror(original.clone());
        let name = match self.share(&key) {
            Some(known) => known.name.clone(),
            None => {
                let name = self.next_name();
                let follower = mirror::begin(original, &name, &self.agent).await?;
                self.insert(key.clone(), name.clone(), Kind::Mirror(follower));
                name
            }
        };
        Ok(Placed {
            key: Some(key),
            ..Placed::lasting(Path::new(MIRROR_DIR).join(name))
        })
    }

    /// The volume is empty at first and stays in the guest until that ends, as the kubelet's
    /// stays until the pod does.
    async fn acquire_memory(
        &mut self,
        origin: MemoryOrigin,
        owners: Option<UserMaps>,
    ) -> Result<Placed, TaskError> {
        let name = match self.memory.get(&origin.device) {
            Some(name) => name.clone(),
            None => self.next_name(),
        };
        let request = memory_volume(&name, &origin, owners.as_ref())?;
        self.agent.make_volume(request).await?;
        let folder = Path::new(MEMORY_DIR).join(&name);
        self.memory.insert(origin.device, name);
        Ok(Placed::lasting(part_of(&folder, &origin.below)))
    }

    async fn acquire_disk(&mut self, disk: DiskRequest) -> Result<PlacedDisk, TaskError> {
        let key = VolumeKey::Disk(disk);
        let known = self.share(&key).map(|volume| &volume.kind);
        let number = match known {
            Some(Kind::Disk(number)) => *number,
            _ => {
                let name = self.next_name();
                let hot = HotDisk {
                    name: &name,
                    machine: &self.machine,
                    agent: &self.agent,
                };
                let number = hot.attach(&self.host, disk).await?;
                self.insert(key.clone(), name, Kind::Disk(number));
                number
            }
        };
        Ok(PlacedDisk { number, key })
    }

    /// A name that no volume of this guest has had.
    fn next_name(&mut self) -> String {
        self.made += 1;
        format!("volume-{}", self.made)
    }

    fn insert(&mut self, key: VolumeKey, name: String, kind: Kind) {
        let volume = Volume {
            name,
            kind,
            users: 1,
        };
        self.volumes.insert(key, volume);
    }

    /// A volume that the guest has already, for one more user of it.
    fn share(&mut self, key: &VolumeKey) -> Option<&Volume> {
        let volume = self.volumes.get_mut(key)?;
        volume.users += 1;
        Some(volume)
    }

    async fn release(&mut self, key: &VolumeKey) {
        let Some(volume) = self.volumes.get_mut(key) else {
            return;
        };
        volume.users -= 1;
        if volume.users > 0 {
            return;
        }
        let Some(Volume { name, kind, .. }) = self.volumes.remove(key) else {
            return;
        };
        match kind {
            Kind::Mirror(follower) => {
                follower.abort();
                // A guest that has ended has nothing to forget.
                let _ = self
                    .agent
                    .remove_volume(RemoveVolumeRequest { volume_id: name })
                    .await;
            }
            Kind::Export => remove_export(&self.machine, name).await,
            Kind::Disk(_) => {
                let hot = HotDisk {
                    name: &name,
                    machine: &self.machine,
                    agent: &self.agent,
                };
                hot.detach().await;
            }
        }
    }
}

/// What the agent is to make of a file system in the guest's memory, and of the part that is used.
///
/// # Errors
/// [`TaskError::Invalid`] for a part that no message can name.
pub(super) fn memory_volume(
    name: &str,
    origin: &MemoryOrigin,
    owners: Option<&UserMaps>,
) -> Result<MakeVolumeRequest, TaskError> {
    let part = origin.below.to_str().ok_or_else(|| {
        let path = origin.below.display();
        TaskError::Invalid(format!("the sub-path {path} is not UTF-8"))
    })?;
    Ok(MakeVolumeRequest {
        volume_id: name.to_owned(),
        size_bytes: origin.size_bytes.unwrap_or_default(),
        huge_page_bytes: origin.huge_page_bytes.unwrap_or_default(),
        root: Some(ownership(origin.root, owners)),
        part: part.to_owned(),
        part_ownership: Some(ownership(origin.part, owners)),
    })
}

/// What a container's access lets it change of an export, which may have mounts below it that stay
/// writable.
pub(super) fn writes(access: Access, mounts_below: bool) -> Writes {
    match access {
        Access::ReadWrite => Writes::Everything,
        Access::ReadOnly if mounts_below => Writes::OtherMounts,
        Access::ReadOnly | Access::RecursivelyReadOnly => Writes::Nothing,
    }
}

fn ownership(ownership: Ownership, owners: Option<&UserMaps>) -> agent::Ownership {
    let Ownership { mode, uid, gid } = ownership;
    agent::Ownership {
        mode,
        uid: owners.map_or(uid, |owners| owners.user(uid)),
        gid: owners.map_or(gid, |owners| owners.group(gid)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_recursively_read_only_volumes_keep_mounts_below_from_writes() {
        assert_eq!(writes(Access::RecursivelyReadOnly, true), Writes::Nothing);
        assert_eq!(writes(Access::ReadOnly, true), Writes::OtherMounts);
        assert_eq!(writes(Access::ReadOnly, false), Writes::Nothing);
        assert_eq!(writes(Access::ReadWrite, true), Writes::Everything);
    }
}
