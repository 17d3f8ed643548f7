//! The pod's tasks and their processes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::error::TaskError;
use super::pet_exec::ByQga;
use super::process::{Exit, ProcessEvent, ProcessState};
use super::request::{ProcessId, Reply};
use super::task_pid::TaskPid;
use super::undo::Undo;
use crate::io::{Stdio, Streams};
use crate::pod::cpu_set::CpuSet;
use crate::pod::resources::Share;

/// A process.
pub(super) struct Process {
    pub(super) state: ProcessState,
    pub(super) stdio: Stdio,
    pub(super) streams: Streams,
    /// Of an execution in a machine by QEMU's guest agent.
    pub(super) by_qga: Option<ByQga>,
    waiting: Vec<Reply<Exit>>,
}

impl Process {
    pub(super) fn new(stdio: Stdio) -> Self {
        let state = ProcessState::Creating { ended: None };
        Self {
            state,
            stdio,
            streams: Streams::default(),
            by_qga: None,
            waiting: Vec::new(),
        }
    }

    /// Gives the process its streams; one that has ended meanwhile says no more.
    pub(super) fn connect(&mut self, mut streams: Streams) {
        if self.state.exit().is_some() {
            streams.process_ended();
        }
        self.streams = streams;
    }

    /// Answers with the process's end, now or when it comes.
    pub(super) fn wait(&mut self, reply: Reply<Exit>) {
        match self.state.exit() {
            Some(exit) => drop(reply.send(Ok(exit))),
            None => {
                // Who does not wait any more is forgotten.
                self.waiting.retain(|waiting| !waiting.is_closed());
                self.waiting.push(reply);
            }
        }
    }

    /// Lets `event` happen; yields the exit when the process ended by it.
    pub(super) fn apply(
        &mut self,
        id: &ProcessId,
        event: ProcessEvent,
    ) -> Result<Option<Exit>, TaskError> {
        let before = self.state.exit();
        let refused = |source| TaskError::Refused {
            process: id.to_string(),
            source,
        };
        self.state = self.state.after(event).map_err(refused)?;
        let exit = self.state.exit().filter(|_| before.is_none());
        if let Some(exit) = exit {
            self.streams.process_ended();
            for waiting in self.waiting.drain(..) {
                let _ = waiting.send(Ok(exit));
            }
        }
        Ok(exit)
    }
}

/// A container, or the sandbox itself.
pub(super) struct Task {
    pub(super) pid: TaskPid,
    pub(super) bundle: PathBuf,
    /// Whether this is the sandbox, which has no process in the guest.
    pub(super) is_sandbox: bool,
    pub(super) paused: bool,
    pub(super) init: Process,
    pub(super) execs: BTreeMap<String, Process>,
    pub(super) undo: Vec<Undo>,
    /// How likely its processes are taken when the host is out of memory.
    pub(super) oom_score: i64,
    /// What it is given of the pod.
    pub(super) share: Share,
    /// What was last read of its metrics.
    pub(super) metrics: Option<Vec<u8>>,
}

impl Task {
    pub(super) fn new(
        pid: TaskPid,
        bundle: PathBuf,
        stdio: Stdio,
        is_sandbox: bool,
        oom_score: i64,
    ) -> Self {
        Self {
            pid,
            bundle,
            is_sandbox,
            paused: false,
            init: Process::new(stdio),
            execs: BTreeMap::new(),
            undo: Vec::new(),
            oom_score,
            share: Share::default(),
            metrics: None,
        }
    }
}

/// All tasks of a pod.
#[derive(Default)]
pub(super) struct Tasks(pub(super) BTreeMap<String, Task>);

impl Tasks {
    pub(super) fn task(&mut self, id: &str) -> Result<&mut Task, TaskError> {
        self.0
            .get_mut(id)
            .ok_or_else(|| TaskError::NotFound(format!("container {id}")))
    }

    /// A task's number among the host's processes; the pod's of one that is gone.
    pub(super) fn pid(&self, id: &str) -> u32 {
        self.0
            .get(id)
            .map_or_else(std::process::id, |task| task.pid.number())
    }

    /// The container whose number among the host's processes is `pid`.
    pub(super) fn container_of(&self, pid: u32) -> Option<&str> {
        let mut tasks = self.0.iter();
        let found = tasks.find(|(_, task)| task.pid.is_container() && task.pid.number() == pid);
        found.map(|(id, _)| id.as_str())
    }

    pub(super) fn process(&mut self, id: &ProcessId) -> Result<&mut Process, TaskError> {
        let task = self.task(&id.container)?;
        if id.is_init() {
            return Ok(&mut task.init);
        }
        task.execs
            .get_mut(&id.exec)
            .ok_or_else(|| TaskError::NotFound(id.to_string()))
    }

    /// The pod's OOM score: the lowest of its containers', or its own while it has none.
    pub(super) fn oom_score(&self) -> Option<i64> {
        let of = |sandbox| {
            let tasks = self
                .0
                .values()
                .filter(move |task| task.is_sandbox == sandbox);
            tasks.map(|task| task.oom_score).min()
        };
        of(false).or_else(|| of(true))
    }

    /// The CPUs of the host on which the pod may run: all that its containers name, or None when
    /// one of them names none.
    pub(super) fn host_cpus(&self) -> Option<CpuSet> {
        let containers = self.0.values().filter(|task| !task.is_sandbox);
        let sets: Option<Vec<&CpuSet>> = containers
            .map(|task| task.share.host_cpus.as_ref())
            .collect();
        sets.filter(|sets| !sets.is_empty()).map(CpuSet::union)
    }

    /// What all containers that have not ended are given, with another share for `changed`.
    pub(super) fn shares<'a>(&'a self, changed: &str, share: &'a Share) -> Vec<&'a Share> {
        let others = self.0.iter().filter(|(id, task)| {
            let is_over = task.is_sandbox || task.init.state.exit().is_some();
            id.as_str() != changed && !is_over
        });
        others.map(|(_, task)| &task.share).chain([share]).collect()
    }

    /// All processes; each container's execs before its init, the sandbox last.
    pub(super) fn ids(&self) -> Vec<ProcessId> {
        let of_task = |(container, task): (&String, &Task)| {
            let execs = task.execs.keys().map(|exec| ProcessId {
                container: container.clone(),
                exec: exec.clone(),
            });
            execs
                .chain([ProcessId::init(container)])
                .collect::<Vec<_>>()
        };
        let containers = self
            .0
            .iter()
            .filter(|(_, task)| !task.is_sandbox)
            .flat_map(of_task);
        let sandbox = self
            .0
            .iter()
            .filter(|(_, task)| task.is_sandbox)
            .flat_map(of_task);
        containers.chain(sandbox).collect()
    }
}
