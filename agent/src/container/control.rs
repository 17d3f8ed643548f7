//! What is done to existing processes and containers: signals, sizes, limits,
//! freezing, counting, deletion.

use std::os::fd::AsFd as _;
use std::time::Duration;

use podvisor_proto::cgroups::Metrics;

use super::process::Phase;
use super::{ContainerError, Containers, ProcessKey};
use crate::cgroup::Cgroup;
use crate::oci::parse_resources;
use crate::stage::terminal;
use crate::sys::signal::{self, KILL};

/// How long a killed process may take to be reaped. One that waits for the
/// host's file system cannot be killed before that answers.
const REAP_TIMEOUT: Duration = Duration::from_secs(5);

impl Containers {
    /// Sends a signal to a process, or to every process of its container.
    ///
    /// # Errors
    ///
    /// [`ContainerError::NotFound`] for a process that has ended.
    pub fn signal(&self, key: &ProcessKey, number: u32, all: bool) -> Result<(), ContainerError> {
        let mut table = self.table();
        if all {
            let cgroup = table.container(&key.container_id)?.cgroup.clone();
            drop(table);
            return signal_all(&cgroup, number);
        }
        let process = table.process(key)?;
        let id = if key.exec_id.is_empty() {
            &key.container_id
        } else {
            &key.exec_id
        };
        match (process.phase(), &process.pidfd) {
            (Phase::Ended, _) => Err(ContainerError::NotFound(format!("{id}: it has ended"))),
            (_, None) => Err(ContainerError::Phase {
                id: id.clone(),
                reason: "it is not started",
            }),
            (_, Some(pidfd)) => match signal::send(pidfd.as_fd(), number) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                    Err(ContainerError::NotFound(format!("{id}: it has ended")))
                }
                sent => sent.map_err(|source| ContainerError::Signal { number, source }),
            },
        }
    }

    /// Sets the size of a process's terminal; one without a terminal ignores it.
    ///
    /// # Errors
    ///
    /// [`ContainerError::NotFound`], [`ContainerError::Terminal`].
    pub fn resize(&self, key: &ProcessKey, rows: u32, columns: u32) -> Result<(), ContainerError> {
        let mut table = self.table();
        let process = table.process(key)?;
        process.size = (rows, columns);
        match &process.terminal {
            Some(master) => {
                terminal::resize(master.as_fd(), rows, columns).map_err(ContainerError::Terminal)
            }
            None => Ok(()),
        }
    }

    /// Gives a new terminal the size that was asked for while it was made.
    pub(super) fn apply_late_size(&self, key: &ProcessKey) {
        let size = self
            .table()
            .process(key)
            .map_or((0, 0), |process| process.size);
        if size != (0, 0) {
            // The terminal has a size already; this only corrects it.
            let _ = self.resize(key, size.0, size.1);
        }
    }

    /// Every process of a container, as guest pids.
    ///
    /// # Errors
    ///
    /// [`ContainerError::NotFound`].
    pub fn processes(&self, id: &str) -> Result<Vec<u32>, ContainerError> {
        Ok(self.cgroup(id)?.processes())
    }

    /// Changes a container's limits.
    ///
    /// # Errors
    ///
    /// [`ContainerError`]; limits written before the one that failed stay.
    pub fn update(&self, id: &str, resources_json: &[u8]) -> Result<(), ContainerError> {
        let resources = parse_resources(resources_json)?;
        Ok(self.cgroup(id)?.update(&resources)?)
    }

    /// Stops every process of a container.
    ///
    /// # Errors
    ///
    /// [`ContainerError`].
    pub async fn pause(&self, id: &str) -> Result<(), ContainerError> {
        let cgroup = self.running_cgroup(id)?;
        Ok(cgroup.freeze().await?)
    }

    /// Lets them run again.
    ///
    /// # Errors
    ///
    /// [`ContainerError`].
    pub fn resume(&self, id: &str) -> Result<(), ContainerError> {
        Ok(self.running_cgroup(id)?.thaw()?)
    }

    /// What a container uses; after its end, what it had used.
    ///
    /// # Errors
    ///
    /// [`ContainerError::NotFound`].
    pub fn metrics(&self, id: &str) -> Result<Metrics, ContainerError> {
        let mut table = self.table();
        let container = table.container(id)?;
        Ok(container
            .last_metrics
            .clone()
            .unwrap_or_else(|| container.cgroup.metrics()))
    }

    /// Frees a process, killed where it still runs; an init with its container. The caller whose
    /// call to start one took too long knows only that it wants no more of it.
    ///
    /// # Errors
    ///
    /// [`ContainerError::NotFound`], [`ContainerError::Phase`] when it cannot be killed now.
    pub async fn delete(&self, key: &ProcessKey) -> Result<(), ContainerError> {
        if key.exec_id.is_empty() {
            return self.discard(&key.container_id).await;
        }
        self.end_exec(key).await?;
        let mut table = self.table();
        // Another call may have been faster.
        if let Ok(container) = table.container(&key.container_id)
            && let Some(exec) = container.execs.remove(&key.exec_id)
        {
            exec.process.tokens.forget(&self.streams);
        }
        Ok(())
    }

    /// Kills an exec's process, if there is one, and waits for its end.
    async fn end_exec(&self, key: &ProcessKey) -> Result<(), ContainerError> {
        let Some(pidfd) = self.table().process(key)?.pidfd.clone() else {
            return Ok(());
        };
        signal::kill(pidfd.as_fd()).map_err(|source| ContainerError::Signal {
            number: KILL,
            source,
        })?;
        if self.wait_for_end(key).await {
            return Ok(());
        }
        Err(ContainerError::Phase {
            id: key.exec_id.clone(),
            reason: "it cannot be killed now",
        })
    }

    /// Kills what is left of a container and removes every trace of it.
    pub(super) async fn discard(&self, id: &str) -> Result<(), ContainerError> {
        let cgroup = {
            let mut table = self.table();
            let container = table.container(id)?;
            if container.deleting {
                let id = id.to_owned();
                return Err(ContainerError::Phase {
                    id,
                    reason: "it is being deleted",
                });
            }
            container.deleting = true;
            container.cgroup.clone()
        };
        let removed = self.tear_down(id, &cgroup).await;
        let mut table = self.table();
        if removed.is_err() {
            // It may be asked for again.
            table.container(id)?.deleting = false;
            return removed;
        }
        if let Some(container) = table.containers.remove(id) {
            container.init.tokens.forget(&self.streams);
            for exec in container.execs.values() {
                exec.process.tokens.forget(&self.streams);
            }
            table.pids.retain(|_, key| key.container_id != id);
        }
        Ok(())
    }

    async fn tear_down(&self, id: &str, cgroup: &Cgroup) -> Result<(), ContainerError> {
        cgroup.kill()?;
        if !self.wait_for_end(&ProcessKey::init(id)).await {
            let id = id.to_owned();
            return Err(ContainerError::Phase {
                id,
                reason: "its processes cannot be killed now",
            });
        }
        Ok(cgroup.remove().await?)
    }

    /// Waits until a process has been reaped; false when that takes too long.
    pub(super) async fn wait_for_end(&self, key: &ProcessKey) -> bool {
        let end = async {
            loop {
                let ended = self.ended.notified();
                tokio::pin!(ended);
                ended.as_mut().enable();
                let phase = self.table().process(key).map(|process| process.phase());
                match phase {
                    Ok(Phase::Ended) | Err(_) => return,
                    Ok(Phase::Creating | Phase::Created | Phase::Starting | Phase::Running) => {
                        ended.await;
                    }
                }
            }
        };
        tokio::time::timeout(REAP_TIMEOUT, end).await.is_ok()
    }

    fn cgroup(&self, id: &str) -> Result<Cgroup, ContainerError> {
        Ok(self.table().container(id)?.cgroup.clone())
    }

    fn running_cgroup(&self, id: &str) -> Result<Cgroup, ContainerError> {
        let mut table = self.table();
        let container = table.container(id)?;
        if container.init.phase() == Phase::Running {
            return Ok(container.cgroup.clone());
        }
        let id = id.to_owned();
        Err(ContainerError::Phase {
            id,
            reason: "the container is not running",
        })
    }
}

fn signal_all(cgroup: &Cgroup, number: u32) -> Result<(), ContainerError> {
    if number == KILL {
        return Ok(cgroup.kill()?);
    }
    for pid in cgroup.processes() {
        match signal::send_to_pid(pid, number) {
            // It ended between the list and the signal.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            sent => sent.map_err(|source| ContainerError::Signal { number, source })?,
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
