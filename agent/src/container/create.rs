//! Creating containers and promising execs.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use podvisor_proto::agent::v1::{Stdio, StreamTokens};

use super::launch::{Handshake, Launch, Launched};
use super::process::{Phase, Process, ProcessStreams};
use super::{Container, ContainerError, Containers, Exec, ProcessKey, check_id};
use crate::cgroup::Cgroup;
use crate::huge_pages::HugePages;
use crate::oci::{NamespaceKind, Spec, parse_process};
use crate::pod_users::PodUsers;
use crate::stage::CONTAINER_INIT;
use crate::stage::protocol::StageConfig;
use crate::sys::clone::INIT_SELF;

impl Containers {
    /// Creates a container, its init prepared up to execve. Returns init's pid
    /// and the streams. Without a pid namespace of its own it joins that of the
    /// container `pid_namespace_of`, or the pod's when that is empty.
    ///
    /// # Errors
    ///
    /// [`ContainerError`]; nothing is left of the container then.
    pub async fn create(
        &self,
        id: &str,
        spec_json: Vec<u8>,
        stdio: &Stdio,
        pid_namespace_of: &str,
    ) -> Result<(u32, StreamTokens), ContainerError> {
        check_id(id)?;
        let spec = Spec::parse(&spec_json)?;
        if self.table().containers.contains_key(id) {
            return Err(ContainerError::Exists(id.to_owned()));
        }
        let joined = self.joined_process(&spec, pid_namespace_of)?;
        let huge_pages = HugePages::take(&spec.linux.resources.hugepage_limits)?;
        let cgroup = Cgroup::create(id, &spec.linux.resources)?;
        let tokens =
            ProcessStreams::issue(stdio, &self.streams).map_err(ContainerError::Streams)?;
        let launched = self.launch_init(
            &spec,
            &spec_json,
            &cgroup,
            &tokens,
            stdio,
            joined.as_deref(),
        );
        let launched = match launched {
            Ok(launched) => launched,
            Err(error) => {
                tokens.forget(&self.streams);
                // Nothing ran in it, so it is empty.
                let _ = cgroup.remove().await;
                return Err(error);
            }
        };
        self.oom.add(&cgroup);
        let pid = launched.pid.as_raw_nonzero().get().unsigned_abs();
        let message = tokens.to_message();
        let mut init = Process::new(Phase::Creating, tokens);
        init.pid = pid;
        init.pidfd = Some(Arc::new(launched.pidfd));
        self.insert(
            id,
            Container {
                spec_json,
                cgroup,
                _huge_pages: huge_pages,
                init,
                execs: std::collections::HashMap::new(),
                oom_kills: 0,
                last_metrics: None,
                deleting: false,
            },
        );
        if let Err(error) = self.await_prepared(id, launched.handshake).await {
            // What failed first is what the caller has to hear.
            let _ = self.discard(id).await;
            return Err(error);
        }
        Ok((pid, message))
    }

    /// Waits until only execve is left of a container's init.
    async fn await_prepared(&self, id: &str, handshake: Handshake) -> Result<(), ContainerError> {
        let terminal = handshake.prepared().await?;
        self.adopt(&ProcessKey::init(id), terminal, Some(handshake))
    }

    /// Promises an additional process; it is made when it is started.
    ///
    /// # Errors
    ///
    /// [`ContainerError`].
    pub fn create_exec(
        &self,
        key: &ProcessKey,
        process_json: Vec<u8>,
        stdio: &Stdio,
    ) -> Result<StreamTokens, ContainerError> {
        check_id(&key.exec_id)?;
        parse_process(&process_json)?;
        let mut table = self.table();
        let container = table.container(&key.container_id)?;
        if container.execs.contains_key(&key.exec_id) {
            return Err(ContainerError::Exists(key.exec_id.clone()));
        }
        if container.init.phase() != Phase::Running {
            let id = key.container_id.clone();
            return Err(ContainerError::Phase {
                id,
                reason: "the container is not running",
            });
        }
        let tokens =
            ProcessStreams::issue(stdio, &self.streams).map_err(ContainerError::Streams)?;
        let message = tokens.to_message();
        let mut process = Process::new(Phase::Created, tokens);
        process.size = (stdio.rows, stdio.columns);
        let exec = Exec {
            process,
            process_json,
            terminal: stdio.terminal,
        };
        container.execs.insert(key.exec_id.clone(), exec);
        Ok(message)
    }

    /// The process whose pid namespace a container is born in; none when it has
    /// its own.
    fn joined_process(
        &self,
        spec: &Spec,
        container: &str,
    ) -> Result<Option<Arc<OwnedFd>>, ContainerError> {
        if spec.linux.has_own(NamespaceKind::Pid) {
            return Ok(None);
        }
        if container.is_empty() {
            return Ok(Some(self.pod_pid().map_err(ContainerError::PodPid)?));
        }
        let mut table = self.table();
        let init = table.container(container)?.init.pidfd.clone();
        let init = init.ok_or_else(|| ContainerError::Phase {
            id: container.to_owned(),
            reason: "its processes cannot be joined, for it has ended",
        })?;
        Ok(Some(init))
    }

    /// The pod's user namespace, when the container is to be in it.
    fn pod_users(&self, spec: &Spec) -> Result<Option<PodUsers>, ContainerError> {
        if !spec.linux.has_own(NamespaceKind::User) {
            return Ok(None);
        }
        let users = self.table().pod_users.clone();
        let users = users.ok_or(ContainerError::Malformed(
            "linux.namespaces: the pod has no user namespace",
        ))?;
        Ok(Some(users))
    }

    fn launch_init(
        &self,
        spec: &Spec,
        spec_json: &[u8],
        cgroup: &Cgroup,
        tokens: &ProcessStreams,
        stdio: &Stdio,
        joined: Option<&OwnedFd>,
    ) -> Result<Launched, ContainerError> {
        let flags = match spec.linux.has_own(NamespaceKind::Pid) {
            true => u64::from(libc::CLONE_NEWPID.unsigned_abs()),
            false => 0,
        };
        let users = self.pod_users(spec)?;
        let directory = cgroup.open()?;
        let launch = Launch {
            program: INIT_SELF,
            stage: CONTAINER_INIT,
            config: StageConfig {
                spec_json: spec_json.to_vec(),
                process_json: Vec::new(),
                terminal: stdio.terminal,
                rows: stdio.rows,
                columns: stdio.columns,
            },
            stdio: tokens
                .open(&self.streams, stdio.terminal)
                .map_err(ContainerError::Streams)?,
            cgroup: Some(directory.as_fd()),
            flags,
            pid_namespace_of: joined.map(std::os::fd::AsFd::as_fd),
            container: None,
            users: users.as_ref().map(|users| users.init().as_fd()),
            stream_owner: spec.stream_owner(spec.process.user.uid),
        };
        Ok(launch.start()?)
    }

    /// From here on the reaper knows the pid; no await may lie between the
    /// start of the process and this.
    fn insert(&self, id: &str, container: Container) {
        let key = ProcessKey::init(id);
        let mut table = self.table();
        table.pids.insert(container.init.pid, key);
        table.containers.insert(id.to_owned(), container);
    }

    /// Takes over what a prepared stage has brought.
    pub(super) fn adopt(
        &self,
        key: &ProcessKey,
        terminal: Option<OwnedFd>,
        handshake: Option<Handshake>,
    ) -> Result<(), ContainerError> {
        let mut table = self.table();
        let process = table.process(key)?;
        if let Some(master) = &terminal {
            process
                .tokens
                .open_terminal(&self.streams, master)
                .map_err(ContainerError::Streams)?;
        }
        process.terminal = terminal;
        process.handshake = handshake;
        // An init moves on to created; an exec is starting already.
        if process.phase() == Phase::Ended {
            return Err(super::LaunchError::Died.into());
        }
        process.advance(Phase::Created);
        Ok(())
    }
}
