//! A disk of a running guest: plugged in, found by the agent, and back.

use std::sync::Arc;

use podvisor_proto::agent::v1::{AgentClient, FindDiskRequest, ReleaseDiskRequest};

use super::error::{TaskError, chain};
use crate::guest::Machine;
use crate::guest::disk::Disk;
use crate::host::{DiskRequest, HostOps};
use crate::pod::block_devices::GuestNumber;

/// A disk and who it is plugged into.
pub(super) struct HotDisk<'a> {
    /// Its name on both sides.
    pub name: &'a str,
    /// The guest's machine.
    pub machine: &'a Arc<dyn Machine>,
    /// The guest's agent.
    pub agent: &'a AgentClient,
}

impl HotDisk<'_> {
    /// Gives the guest a block device of the host and yields its number there.
    ///
    /// # Errors
    /// [`TaskError`]; the guest has not got it then.
    pub async fn attach(
        &self,
        host: &Arc<dyn HostOps>,
        request: DiskRequest,
    ) -> Result<GuestNumber, TaskError> {
        let (host, machine, name) = (host.clone(), self.machine.clone(), self.name.to_owned());
        // On a thread that may wait, and that has no system call filter for the disk's own thread
        // to inherit.
        let plug = move || -> Result<(), TaskError> {
            let file = host.open_disk(&request)?;
            Ok(machine.add_disk(Disk {
                name,
                file,
                read_only: request.read_only,
            })?)
        };
        tokio::task::spawn_blocking(plug).await??;
        let request = FindDiskRequest {
            serial: self.name.to_owned(),
        };
        match self.agent.find_disk(request).await {
            Ok(found) => Ok(GuestNumber {
                major: found.major,
                minor: found.minor,
            }),
            Err(status) => {
                self.unplug().await;
                Err(status.into())
            }
        }
    }

    /// Takes it back, whether the guest lets go of it or not.
    pub async fn detach(&self) {
        let request = ReleaseDiskRequest {
            serial: self.name.to_owned(),
        };
        // A guest that has ended has nothing to let go of.
        if let Err(error) = self.agent.release_disk(request).await {
            tracing::debug!(%error, disk = self.name, "the guest's disk");
        }
        self.unplug().await;
    }

    async fn unplug(&self) {
        let (machine, name) = (self.machine.clone(), self.name.to_owned());
        let removed = tokio::task::spawn_blocking(move || machine.remove_disk(&name)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(error = chain(&error), "a disk is left");
        }
    }
}
