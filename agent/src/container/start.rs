//! Letting created processes run.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::launch::{Handshake, Launch, Launched};
use super::process::Phase;
use super::{ContainerError, Containers, ProcessKey};
use crate::cgroup::Cgroup;
use crate::oci::{Spec, parse_process};
use crate::stage::CONTAINER_EXEC;
use crate::stage::protocol::StageConfig;
use crate::sys::clone::INIT_SELF;

/// How long the streams of a process may take to be connected.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

impl Containers {
    /// Runs a created process and returns its pid.
    ///
    /// # Errors
    ///
    /// [`ContainerError::Phase`] when it is not created or a stream is not
    /// connected; [`ContainerError::Launch`] with what the stage met. A process
    /// whose start failed has ended; it is deleted like any other.
    pub async fn start(&self, key: &ProcessKey) -> Result<u32, ContainerError> {
        // The shim's connections are under way when it asks: their tokens may come after.
        self.streams
            .wait_until(CONNECT_LIMIT, || self.is_ready(key))
            .await;
        self.begin(key)?;
        let started = match key.exec_id.as_str() {
            "" => self.release(key).await,
            _ => self.run_exec(key).await,
        };
        if let Err(error) = started {
            self.end_failed(key).await;
            return Err(error);
        }
        let mut table = self.table();
        let process = table.process(key)?;
        process.advance(Phase::Running);
        Ok(process.pid)
    }

    /// Whether waiting for streams changes nothing any more.
    fn is_ready(&self, key: &ProcessKey) -> bool {
        let mut table = self.table();
        table
            .process(key)
            .map_or(true, |process| process.tokens.are_connected(&self.streams))
    }

    /// Sees a process that could not be started, and its streams, to their end, so that it can
    /// be deleted at once: a stage that failed ends by itself.
    async fn end_failed(&self, key: &ProcessKey) {
        if let Ok(process) = self.table().process(key) {
            process.tokens.forget_unsupplied(&self.streams);
            if process.pidfd.is_none() {
                process.advance(Phase::Ended);
            }
        }
        if !self.wait_for_end(key).await {
            tracing::warn!(
                container = key.container_id,
                exec = key.exec_id,
                "a stage does not end"
            );
        }
    }

    fn begin(&self, key: &ProcessKey) -> Result<(), ContainerError> {
        let mut table = self.table();
        let process = table.process(key)?;
        let refuse = |reason| {
            let id = if key.exec_id.is_empty() {
                &key.container_id
            } else {
                &key.exec_id
            };
            Err(ContainerError::Phase {
                id: id.clone(),
                reason,
            })
        };
        if process.phase() != Phase::Created {
            return refuse("only a created process can be started");
        }
        if !process.tokens.are_connected(&self.streams) {
            return refuse("a stream is not connected");
        }
        process.advance(Phase::Starting);
        Ok(())
    }

    /// Gives a container's init the word to go.
    async fn release(&self, key: &ProcessKey) -> Result<(), ContainerError> {
        let handshake = self.table().process(key)?.handshake.take();
        match handshake {
            Some(handshake) => Ok(handshake.go().await?),
            None => Err(super::LaunchError::Died.into()),
        }
    }

    async fn run_exec(&self, key: &ProcessKey) -> Result<(), ContainerError> {
        let handshake = self.launch_exec(key)?;
        let terminal = handshake.prepared().await?;
        self.adopt(key, terminal, None)?;
        self.apply_late_size(key);
        Ok(handshake.go().await?)
    }

    /// Starts the exec's stage and makes it known to the reaper.
    fn launch_exec(&self, key: &ProcessKey) -> Result<Handshake, ContainerError> {
        let mut table = self.table();
        let container = table.container(&key.container_id)?;
        let Some(init) = container
            .init
            .pidfd
            .clone()
            .filter(|_| container.init.phase() == Phase::Running)
        else {
            let id = key.container_id.clone();
            return Err(ContainerError::Phase {
                id,
                reason: "the container is not running",
            });
        };
        let exec = container
            .execs
            .get_mut(&key.exec_id)
            .ok_or_else(|| ContainerError::NotFound(key.exec_id.clone()))?;
        let spec = Spec::parse(&container.spec_json)?;
        let uid = parse_process(&exec.process_json)?.user.uid;
        let directory = container.cgroup.open()?;
        let stdio = exec.process.tokens.open(&self.streams, exec.terminal);
        let init: &Arc<OwnedFd> = &init;
        let launch = Launch {
            program: INIT_SELF,
            stage: CONTAINER_EXEC,
            config: StageConfig {
                spec_json: container.spec_json.clone(),
                process_json: exec.process_json.clone(),
                terminal: exec.terminal,
                rows: exec.process.size.0,
                columns: exec.process.size.1,
            },
            stdio: stdio.map_err(ContainerError::Streams)?,
            cgroup: Some(directory.as_fd()),
            flags: 0,
            // Init is in the right namespace whether it is its own or the pod's.
            pid_namespace_of: Some(init.as_fd()),
            container: Some(init.as_fd()),
            // The stage joins that of the container with all its other namespaces.
            users: None,
            stream_owner: spec.stream_owner(uid),
        };
        let launched = start_exec(launch, &container.cgroup, container.init.pid)?;
        let pid = launched.pid.as_raw_nonzero().get().unsigned_abs();
        exec.process.pid = pid;
        exec.process.pidfd = Some(Arc::new(launched.pidfd));
        table.pids.insert(pid, key.clone());
        Ok(launched.handshake)
    }
}

/// Starts an exec's stage in its container's cgroup, or, as runc does, beside init where init has
/// divided that cgroup, as systemd does.
fn start_exec(launch: Launch<'_>, cgroup: &Cgroup, init: u32) -> Result<Launched, ContainerError> {
    match launch.start() {
        Err(error) if error.is_busy() => {}
        started => return Ok(started?),
    }
    let beside = cgroup.of_process(init)?.open()?;
    let launch = Launch {
        cgroup: Some(beside.as_fd()),
        ..launch
    };
    Ok(launch.start()?)
}
