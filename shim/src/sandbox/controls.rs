//! What can be asked of a container that is there: its processes, limits, metrics, terminals.

use podvisor_proto::agent::v1::{
    PauseContainerRequest, ResizeTerminalRequest, ResumeContainerRequest,
};

use super::actor::{Actor, GuestState};
use super::error::TaskError;
use super::request::{ProcessId, Reply};
use super::undo::Hands;
use super::work::{self, Message};

impl Actor {
    pub(super) fn processes(&mut self, id: String, reply: Reply<Vec<u32>>) {
        match self.tasks.task(&id).map(|task| task.is_sandbox) {
            Err(error) => drop(reply.send(Err(error))),
            Ok(true) => drop(reply.send(Ok(Vec::new()))),
            Ok(false) => match self.link() {
                Ok(link) => drop(tokio::spawn(work::processes(link.agent, id, reply))),
                Err(_) => drop(reply.send(Ok(Vec::new()))),
            },
        }
    }

    pub(super) fn resize(&mut self, id: ProcessId, rows: u32, columns: u32, reply: Reply<()>) {
        let terminal = self
            .tasks
            .process(&id)
            .map(|process| process.stdio.terminal);
        if id.is_init() && self.is_machine(&id.container) {
            return self.resize_console(rows, columns, reply);
        }
        match terminal.and_then(|terminal| Ok((terminal, self.link()?))) {
            Ok((false, _)) => drop(reply.send(Ok(()))),
            Ok((true, link)) => {
                let request = ResizeTerminalRequest {
                    container_id: id.container,
                    exec_id: id.exec,
                    rows,
                    columns,
                };
                tokio::spawn(async move {
                    let result = link.agent.resize_terminal(request).await;
                    let _ = reply.send(result.map(drop).map_err(TaskError::from));
                });
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    pub(super) fn freeze(&mut self, container: String, frozen: bool, reply: Reply<()>) {
        if self.is_machine(&container) {
            return self.freeze_pet(container, frozen, reply);
        }
        match self.container_hands(&container) {
            Ok(hands) => {
                let out = self.outbox.clone();
                tokio::spawn(async move {
                    let container_id = container.clone();
                    let result = if frozen {
                        hands
                            .agent
                            .pause_container(PauseContainerRequest { container_id })
                            .await
                            .map(drop)
                    } else {
                        hands
                            .agent
                            .resume_container(ResumeContainerRequest { container_id })
                            .await
                            .map(drop)
                    };
                    if result.is_ok() {
                        let _ = out.send(Message::Frozen { container, frozen });
                    }
                    let _ = reply.send(result.map_err(TaskError::from));
                });
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// The guest, for a call about a container that is in it.
    fn container_hands(&mut self, id: &str) -> Result<Hands, TaskError> {
        if self.tasks.task(id)?.is_sandbox {
            return Err(TaskError::Invalid(
                "the pod itself cannot be changed while it runs".to_owned(),
            ));
        }
        self.hands()
    }

    pub(super) fn stats(&mut self, id: String, reply: Reply<Vec<u8>>) {
        let task = match self.tasks.task(&id) {
            Ok(task) => task,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let (is_sandbox, last) = (task.is_sandbox, task.metrics.clone());
        let is_pet = matches!(self.guest, GuestState::Pet(..));
        match (self.link(), last) {
            (Ok(link), _) => {
                let (out, whole) = (self.outbox.clone(), is_sandbox || is_pet);
                tokio::spawn(work::metrics(link.agent, id, whole, reply, out));
            }
            (Err(TaskError::NoAgent), _) => drop(reply.send(self.host_metrics())),
            (Err(_), None) if is_sandbox && self.has_no_guest_of_its_own() => {
                drop(reply.send(self.host_metrics()));
            }
            (Err(_), Some(last)) => drop(reply.send(Ok(last))),
            (Err(error), None) => drop(reply.send(Err(error))),
        }
    }
}
