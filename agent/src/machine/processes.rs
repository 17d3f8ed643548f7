//! The processes that the host runs in the machine.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use podvisor_proto::agent::v1::{ProcessExited, Stdio, StreamTokens};
use tokio::sync::Notify;

use super::console;
use crate::clock;
use crate::container::{
    ContainerError, Handshake, Launch, Phase, Process, ProcessKey, ProcessStreams, Streams,
    check_id,
};
use crate::events::EventLog;
use crate::oci::parse_process;
use crate::reaper::Ended;
use crate::stage::protocol::StageConfig;
use crate::stage::{MACHINE_EXEC, terminal};
use crate::sys::clone::ANY_SELF;
use crate::sys::signal::{self, KILL};

/// How long the streams of a process may take to be connected.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long a stage that failed, or a process that was killed, may take to end.
const REAP_LIMIT: Duration = Duration::from_secs(5);

/// Why a call is refused that means the machine's own init.
pub const NO_INIT: &str = "this pod is a machine: its init is not a container's process";

#[derive(Debug)]
struct Exec {
    process: Process,
    process_json: Vec<u8>,
    is_terminal: bool,
}

#[derive(Debug, Default)]
struct Table {
    execs: HashMap<ProcessKey, Exec>,
    pids: HashMap<u32, ProcessKey>,
}

impl Table {
    fn exec(&mut self, key: &ProcessKey) -> Result<&mut Exec, ContainerError> {
        if key.exec_id.is_empty() {
            return Err(refused(key, NO_INIT));
        }
        self.execs
            .get_mut(key)
            .ok_or_else(|| ContainerError::NotFound(key.exec_id.clone()))
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Processes {
    table: Mutex<Table>,
    ended: Notify,
    /// Where their ends are told.
    pub events: EventLog,
    /// Their streams.
    pub streams: Arc<Streams>,
}

fn refused(key: &ProcessKey, reason: &'static str) -> ContainerError {
    let id = if key.exec_id.is_empty() {
        &key.container_id
    } else {
        &key.exec_id
    };
    ContainerError::Phase {
        id: id.clone(),
        reason,
    }
}

impl Processes {
    /// Promises a process; it is made when it is started.
    ///
    /// # Errors
    ///
    /// [`ContainerError`].
    pub fn create(
        &self,
        key: &ProcessKey,
        process_json: Vec<u8>,
        stdio: &Stdio,
    ) -> Result<StreamTokens, ContainerError> {
        check_id(&key.exec_id)?;
        parse_process(&process_json)?;
        let mut table = self.table();
        if table.execs.contains_key(key) {
            return Err(ContainerError::Exists(key.exec_id.clone()));
        }
        let tokens =
            ProcessStreams::issue(stdio, &self.streams).map_err(ContainerError::Streams)?;
        let message = tokens.to_message();
        let mut process = Process::new(Phase::Created, tokens);
        process.size = (stdio.rows, stdio.columns);
        let exec = Exec {
            process,
            process_json,
            is_terminal: stdio.terminal,
        };
        table.execs.insert(key.clone(), exec);
        Ok(message)
    }

    /// Runs a created process and returns its pid.
    ///
    /// # Errors
    ///
    /// [`ContainerError`]; a process whose start failed has ended.
    pub async fn start(&self, key: &ProcessKey) -> Result<u32, ContainerError> {
        // The host's connections are under way when it asks: their tokens may come after.
        let is_connected = || {
            let mut table = self.table();
            let exec = table.exec(key);
            exec.map_or(true, |exec| {
                exec.process.tokens.are_connected(&self.streams)
            })
        };
        self.streams.wait_until(CONNECT_LIMIT, is_connected).await;
        self.begin(key)?;
        if let Err(error) = self.run(key).await {
            self.end_failed(key).await;
            return Err(error);
        }
        let mut table = self.table();
        let process = &mut table.exec(key)?.process;
        process.advance(Phase::Running);
        Ok(process.pid)
    }

    fn begin(&self, key: &ProcessKey) -> Result<(), ContainerError> {
        let mut table = self.table();
        let process = &mut table.exec(key)?.process;
        if process.phase() != Phase::Created {
            return Err(refused(key, "only a created process can be started"));
        }
        if !process.tokens.are_connected(&self.streams) {
            return Err(refused(key, "a stream is not connected"));
        }
        process.advance(Phase::Starting);
        Ok(())
    }

    async fn run(&self, key: &ProcessKey) -> Result<(), ContainerError> {
        let handshake = self.launch(key)?;
        let terminal = handshake.prepared().await?;
        self.adopt(key, terminal)?;
        Ok(handshake.go().await?)
    }

    fn launch(&self, key: &ProcessKey) -> Result<Handshake, ContainerError> {
        let mut table = self.table();
        let exec = table.exec(key)?;
        let stdio = exec.process.tokens.open(&self.streams, exec.is_terminal);
        let launched = Launch {
            program: ANY_SELF,
            stage: MACHINE_EXEC,
            config: StageConfig {
                spec_json: Vec::new(),
                process_json: exec.process_json.clone(),
                terminal: exec.is_terminal,
                rows: exec.process.size.0,
                columns: exec.process.size.1,
            },
            stdio: stdio.map_err(ContainerError::Streams)?,
            cgroup: None,
            flags: 0,
            pid_namespace_of: None,
            container: None,
            users: None,
            stream_owner: None,
        }
        .start()?;
        let pid = launched.pid.as_raw_nonzero().get().unsigned_abs();
        exec.process.pid = pid;
        exec.process.pidfd = Some(Arc::new(launched.pidfd));
        table.pids.insert(pid, key.clone());
        Ok(launched.handshake)
    }

    /// Takes over the terminal, in the size that was asked for last.
    fn adopt(&self, key: &ProcessKey, master: Option<OwnedFd>) -> Result<(), ContainerError> {
        let mut table = self.table();
        let process = &mut table.exec(key)?.process;
        let Some(master) = master else {
            return Ok(());
        };
        process
            .tokens
            .open_terminal(&self.streams, &master)
            .map_err(ContainerError::Streams)?;
        let (rows, columns) = process.size;
        if (rows, columns) != (0, 0) {
            terminal::resize(master.as_fd(), rows, columns).map_err(ContainerError::Terminal)?;
        }
        process.terminal = Some(master);
        Ok(())
    }

    /// Sees a process that could not be started, and its streams, to their end, so that it can be
    /// deleted at once.
    async fn end_failed(&self, key: &ProcessKey) {
        if let Ok(exec) = self.table().exec(key) {
            exec.process.tokens.forget_unsupplied(&self.streams);
            // Without a handle there never was a process.
            if exec.process.pidfd.is_none() {
                exec.process.advance(Phase::Ended);
            }
        }
        if !self.wait_for_end(key).await {
            tracing::warn!(exec = key.exec_id, "a stage does not end");
        }
    }

    /// Waits until a process has been reaped; false when that takes too long.
    async fn wait_for_end(&self, key: &ProcessKey) -> bool {
        let has_ended = || {
            let mut table = self.table();
            let exec = table.exec(key);
            exec.map_or(true, |exec| exec.process.phase() == Phase::Ended)
        };
        let end = async {
            loop {
                let ended = self.ended.notified();
                tokio::pin!(ended);
                ended.as_mut().enable();
                if has_ended() {
                    return;
                }
                ended.await;
            }
        };
        tokio::time::timeout(REAP_LIMIT, end).await.is_ok()
    }

    /// Sends a signal to a process, or with `all` to its whole session's first group.
    ///
    /// # Errors
    ///
    /// [`ContainerError::NotFound`] for a process that has ended.
    pub fn signal(&self, key: &ProcessKey, number: u32, all: bool) -> Result<(), ContainerError> {
        let mut table = self.table();
        let process = &table.exec(key)?.process;
        let ended = || ContainerError::NotFound(format!("{}: it has ended", key.exec_id));
        let sent = match (process.phase(), &process.pidfd) {
            (Phase::Ended, _) => return Err(ended()),
            (_, None) => return Err(refused(key, "it is not started")),
            // It leads a session, and so a group, of its own.
            (_, Some(_)) if all => signal::send_to_group(process.pid, number),
            (_, Some(pidfd)) => signal::send(pidfd.as_fd(), number),
        };
        match sent {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(ended()),
            sent => sent.map_err(|source| ContainerError::Signal { number, source }),
        }
    }

    /// Sets the size of a process's terminal, or of the machine's console; a process without a
    /// terminal ignores it.
    ///
    /// # Errors
    ///
    /// [`ContainerError::NotFound`], [`ContainerError::Terminal`].
    pub fn resize(&self, key: &ProcessKey, rows: u32, columns: u32) -> Result<(), ContainerError> {
        if key.exec_id.is_empty() {
            return console::resize(rows, columns).map_err(ContainerError::Terminal);
        }
        let mut table = self.table();
        let process = &mut table.exec(key)?.process;
        process.size = (rows, columns);
        match &process.terminal {
            Some(master) => {
                terminal::resize(master.as_fd(), rows, columns).map_err(ContainerError::Terminal)
            }
            None => Ok(()),
        }
    }

    /// Forgets a process, killed where it still runs.
    ///
    /// # Errors
    ///
    /// [`ContainerError::NotFound`], [`ContainerError::Phase`] when it cannot be killed now.
    pub async fn delete(&self, key: &ProcessKey) -> Result<(), ContainerError> {
        let pidfd = self.table().exec(key)?.process.pidfd.clone();
        if let Some(pidfd) = pidfd {
            signal::kill(pidfd.as_fd()).map_err(|source| ContainerError::Signal {
                number: KILL,
                source,
            })?;
            if !self.wait_for_end(key).await {
                return Err(refused(key, "it cannot be killed now"));
            }
        }
        // Another call may have been faster.
        if let Some(exec) = self.table().execs.remove(key) {
            exec.process.tokens.forget(&self.streams);
        }
        Ok(())
    }

    /// Takes note of an ended child of the agent's.
    pub fn reaped(&self, ended: Ended) {
        let mut table = self.table();
        let Some(key) = table.pids.remove(&ended.pid) else {
            return;
        };
        let Some(exec) = table.execs.get_mut(&key) else {
            return;
        };
        exec.process.advance(Phase::Ended);
        exec.process.pidfd = None;
        self.events.push_exit(ProcessExited {
            container_id: key.container_id,
            exec_id: key.exec_id,
            exit_status: ended.status,
            exited_at_ns: clock::wall_ns(),
            pid: ended.pid,
        });
        drop(table);
        self.ended.notify_waiters();
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    #[tokio::test(flavor = "current_thread")]
    async fn a_process_that_runs_is_killed_and_forgotten() {
        let key = ProcessKey {
            container_id: "machine".to_owned(),
            exec_id: "shell".to_owned(),
        };
        let processes = Processes::default();
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let mut process = Process::new(Phase::Running, ProcessStreams::default());
        process.pidfd = Some(Arc::new(pidfd_open(pid, PidfdFlags::empty()).unwrap()));
        let exec = Exec {
            process,
            process_json: Vec::new(),
            is_terminal: false,
        };
        processes.table().execs.insert(key.clone(), exec);
        processes.table().pids.insert(child.id(), key.clone());
        let reap = async {
            while child.try_wait().unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            processes.reaped(Ended {
                pid: child.id(),
                status: 137,
            });
        };
        let (deleted, ()) = tokio::join!(processes.delete(&key), reap);
        deleted.unwrap();
        let again = processes.delete(&key).await;
        assert!(matches!(again, Err(ContainerError::NotFound(_))));
    }
}
