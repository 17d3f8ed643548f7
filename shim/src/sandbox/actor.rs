//! The one owner of a pod's state.

use std::path::PathBuf;
use std::sync::Arc;

use podvisor_proto::agent::v1::SignalProcessRequest;
use podvisor_proto::containerd::events::{TaskExecStarted, TaskStart};
use podvisor_vmm::EndReason;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::SandboxHandle;
use super::changes::Changes;
use super::error::TaskError;
use super::pet::Pet;
use super::pet_start::Prepared;
use super::plan::{Placement, PodPlan};
use super::process::{ProcessEvent, ProcessState, Refusal};
use super::request::{ProcessId, ProcessStatus, Reply, Request};
use super::task::Tasks;
use super::undo::Hands;
use super::work::{self, Message, Outbox};
use crate::events::{Event, Publisher};
use crate::forward;
use crate::guest::boot::BootTools;
use crate::host::NetworkRequest;
use crate::host::record::RecordKeeper;
use crate::pod::cpu_set::CpuSet;
use crate::pod::files::PodFiles;

/// What a pod's owner is told at its start.
pub struct Settings {
    /// Where the server is; an error when it could not set itself up.
    pub placement: Result<Placement, String>,
    /// What a boot works with.
    pub tools: BootTools,
    /// Takes events.
    pub publisher: Publisher,
    /// What is on the host, for who cleans up after this process.
    pub record: RecordKeeper,
}

/// The pod's guest.
pub(super) enum GuestState {
    /// There is none yet.
    None,
    /// It boots.
    Booting(AbortHandle),
    /// It runs.
    Up {
        hands: Hands,
        ended: watch::Receiver<Option<EndReason>>,
    },
    /// It is a machine of its own, with its container.
    Pet(Pet, watch::Receiver<Option<EndReason>>),
    /// It has ended, and why. Its tasks may still have to be cleaned.
    Ended { hands: Option<Hands>, why: String },
}

/// Owns a pod.
pub struct Actor {
    pub(super) settings: Settings,
    pub(super) guest: GuestState,
    /// Counts guests: what is heard of a former one is not about this one.
    pub(super) epoch: u64,
    /// The pod as containerd described it, once it did.
    pub(super) pod: Option<Arc<PodPlan>>,
    /// Whether a container of the pod was a machine of its own.
    pub(super) had_pet: bool,
    /// A machine that waits for its start.
    pub(super) prepared: Option<Box<Prepared>>,
    pub(super) tasks: Tasks,
    /// The pod's network namespace while there is a redirect in it.
    pub(super) network: Option<PathBuf>,
    /// Forwards the pod's ports, once a container was started.
    pub(super) forwarding: Option<AbortHandle>,
    /// Changes of what containers may use.
    pub(super) changes: Changes,
    /// How many releases of that network are under way.
    pub(super) releasing: usize,
    /// Who waits for the pod to be stopped.
    pub(super) stopping: Vec<Reply<()>>,
    /// The files that the pod's containers share, when they are ours.
    pub(super) files: Option<PodFiles>,
    /// The CPUs of the host to which the machine is confined.
    pub(super) host_cpus: Option<CpuSet>,
    /// The signal by which the pod is being ended.
    pub(super) ending_signal: Option<u32>,
    inbox: mpsc::UnboundedReceiver<Message>,
    pub(super) outbox: Outbox,
}

impl Actor {
    /// A pod without tasks and the handle to send requests to it.
    pub fn new(settings: Settings) -> (Self, SandboxHandle) {
        let (outbox, inbox) = mpsc::unbounded_channel();
        let handle = SandboxHandle {
            inbox: outbox.clone(),
        };
        let actor = Self {
            settings,
            guest: GuestState::None,
            epoch: 0,
            pod: None,
            had_pet: false,
            prepared: None,
            tasks: Tasks::default(),
            network: None,
            forwarding: None,
            changes: Changes::default(),
            releasing: 0,
            stopping: Vec::new(),
            files: None,
            host_cpus: None,
            ending_signal: None,
            inbox,
            outbox,
        };
        (actor, handle)
    }

    /// Serves the pod until it is shut down.
    pub async fn run(mut self) {
        while let Some(message) = self.inbox.recv().await {
            match message {
                Message::Request(Request::Shutdown(reply)) => {
                    let ends = self.tasks.0.is_empty();
                    let _ = reply.send(Ok(ends));
                    if ends {
                        break;
                    }
                }
                Message::Request(request) => self.request(request),
                other => self.result(other),
            }
        }
        self.end().await;
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Create(request, reply) => self.create(*request, reply),
            Request::Start(process, reply) => self.start(process, reply),
            Request::Exec(plan, reply) => self.exec(*plan, reply),
            Request::Signal {
                process,
                signal,
                all,
                reply,
            } => self.signal(process, signal, all, reply),
            Request::Wait(process, reply) => match self.tasks.process(&process) {
                Ok(process) => process.wait(reply),
                Err(error) => drop(reply.send(Err(error))),
            },
            Request::Status(process, reply) => drop(reply.send(self.status(&process))),
            Request::Processes(id, reply) => self.processes(id, reply),
            Request::Delete(process, reply) => self.delete(process, reply),
            Request::Resize {
                process,
                rows,
                columns,
                reply,
            } => {
                self.resize(process, rows, columns, reply);
            }
            Request::CloseInput(process, reply) => {
                let closed = self
                    .tasks
                    .process(&process)
                    .map(|process| process.streams.close_input());
                let _ = reply.send(closed);
            }
            Request::Update(id, resources_json, reply) => self.update(id, &resources_json, reply),
            Request::Freeze {
                container,
                frozen,
                reply,
            } => self.freeze(container, frozen, reply),
            Request::Stats(id, reply) => self.stats(id, reply),
            Request::Stop(reply) => self.stop(reply),
            // Taken by `run`.
            Request::Shutdown(reply) => drop(reply.send(Ok(false))),
        }
    }

    fn result(&mut self, message: Message) {
        if message.epoch().is_some_and(|epoch| epoch != self.epoch) {
            return Self::heard_late(message);
        }
        match message {
            Message::Booted {
                id,
                result,
                then,
                reply,
                ..
            } => self.booted(id, result, then, reply),
            Message::Created { id, result, reply } => {
                let result = result.map(|made| self.created(&id, made));
                self.settle_creation(&id, result, reply);
            }
            Message::ExecCreated {
                process,
                result,
                reply,
            } => {
                self.exec_created(&process, result, reply);
            }
            Message::QgaPrepared {
                process,
                result,
                reply,
            } => self.qga_prepared(&process, result, reply),
            Message::QgaEnded { process, status } => self.qga_ended(&process, status),
            Message::Started {
                process,
                result,
                reply,
            } => self.started(&process, result, reply),
            Message::NetworkReleased => self.network_released(),
            Message::Cleaned { process, reply } => self.cleaned(&process, reply),
            Message::Guest(event) => self.guest_event(event),
            Message::GuestEnded { reason, .. } => self.guest_ended(&reason),
            Message::IsMachine { plan, reply } => self.create_pet(plan, reply),
            Message::PetPrepared { id, result, reply } => self.pet_prepared(&id, result, reply),
            Message::PetDelayed {
                container, reply, ..
            } => self.pet_delayed(&container, reply),
            Message::PetStarted {
                container,
                result,
                reply,
                ..
            } => self.pet_started(&container, *result, reply),
            Message::PetNews { news, .. } => self.pet_news(news),
            Message::Metrics { id, metrics } => {
                if let Ok(task) = self.tasks.task(&id) {
                    task.metrics = Some(metrics);
                }
            }
            Message::Changed {
                epoch,
                change,
                result,
            } => self.changed(epoch, change, result),
            Message::Frozen { container, frozen } => self.frozen(&container, frozen),
            Message::Request(request) => self.request(request),
        }
    }

    /// Of a guest that was given up nothing is of interest, but it may still be there.
    fn heard_late(message: Message) {
        match message {
            Message::Booted { result, reply, .. } => Self::booted_late(result, reply),
            Message::PetDelayed { reply, .. } => Self::pet_delayed_late(reply),
            Message::PetStarted { result, reply, .. } => Self::pet_started_late(*result, reply),
            _ => {}
        }
    }

    /// The guest, when it runs.
    pub(super) fn hands(&self) -> Result<Hands, TaskError> {
        match &self.guest {
            GuestState::Up { hands, .. } => Ok(hands.clone()),
            GuestState::None => Err(TaskError::NoGuest("it was not booted".to_owned())),
            GuestState::Booting(_) => Err(TaskError::NoGuest("it boots".to_owned())),
            GuestState::Pet(..) => Err(TaskError::IsMachine),
            GuestState::Ended { why, .. } => Err(TaskError::NoGuest(why.clone())),
        }
    }

    fn start(&mut self, id: ProcessId, reply: Reply<()>) {
        let begun = self.tasks.process(&id).and_then(|process| {
            process.apply(&id, ProcessEvent::StartAsked)?;
            Ok(process.streams.begin_input())
        });
        match begun {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return self.start_failed(&id, error.into(), reply),
            Err(error) => {
                if self.has_ended(&id) {
                    self.let_go(&id);
                }
                return drop(reply.send(Err(error)));
            }
        }
        let task = self.tasks.task(&id.container);
        let (is_sandbox, paused) =
            task.map_or((false, false), |task| (task.is_sandbox, task.paused));
        if is_sandbox {
            return self.started(&id, Ok(()), reply);
        }
        if paused && !id.is_init() {
            let error = TaskError::Refused {
                process: id.to_string(),
                source: Refusal::Paused,
            };
            return self.start_failed(&id, error, reply);
        }
        if self.is_prepared_pet(&id) {
            return self.start_pet(&id, reply);
        }
        let Some(reply) = self.start_by_qga(&id, reply) else {
            return;
        };
        match self.link() {
            Ok(link) => {
                tokio::spawn(work::start(link.agent, id, reply, self.outbox.clone()));
            }
            Err(error) => self.start_failed(&id, error, reply),
        }
    }

    fn has_ended(&mut self, id: &ProcessId) -> bool {
        let process = self.tasks.process(id);
        process.is_ok_and(|process| matches!(process.state, ProcessState::Stopped(_)))
    }

    /// The guest was not asked to start a process: there is no output to wait for.
    fn start_failed(&mut self, id: &ProcessId, error: TaskError, reply: Reply<()>) {
        if let Ok(process) = self.tasks.process(id) {
            drop(std::mem::take(&mut process.streams));
        }
        self.apply(id, ProcessEvent::StartFailed(Self::exit_now(255)));
        let _ = reply.send(Err(error));
    }

    /// Lets go of what a process that does not run was connected to: whoever reads its output waits for
    /// the end of that before anything is deleted.
    fn let_go(&mut self, id: &ProcessId) {
        if let Ok(process) = self.tasks.process(id) {
            let streams = std::mem::take(&mut process.streams);
            tokio::spawn(streams.drain(work::LAST_WORDS));
        }
    }

    pub(super) fn started(
        &mut self,
        id: &ProcessId,
        result: Result<(), podvisor_proto::ttrpc::Status>,
        reply: Reply<()>,
    ) {
        if let Err(status) = result {
            self.let_go(id);
            self.apply(
                id,
                ProcessEvent::StartFailed(Self::exit_of_failed_start(&status)),
            );
            let _ = reply.send(Err(status.into()));
            return;
        }
        let (container_id, exec_id) = (id.container.clone(), id.exec.clone());
        let pid = self.tasks.pid(&container_id);
        let event = if id.is_init() {
            Event::Start(TaskStart { container_id, pid })
        } else {
            Event::ExecStarted(TaskExecStarted {
                container_id,
                exec_id,
                pid,
            })
        };
        self.settings.publisher.publish(&event);
        if id.is_init() {
            self.note_start(&id.container);
        }
        self.apply(id, ProcessEvent::Started);
        let _ = reply.send(Ok(()));
        if id.is_init() {
            self.forward_ports(&id.container);
        }
    }

    /// Begins to forward the pod's ports, at the start of its first container: before it nothing
    /// could answer, and a pod's own start does not wait for it.
    pub(super) fn forward_ports(&mut self, container: &str) {
        let is_sandbox = self.tasks.task(container).is_ok_and(|task| task.is_sandbox);
        if is_sandbox || self.forwarding.is_some() {
            return;
        }
        let machine = match &self.guest {
            GuestState::Up { hands, .. } => Arc::clone(&hands.machine),
            GuestState::Pet(pet, _) => Arc::clone(&pet.machine),
            GuestState::None | GuestState::Booting(_) | GuestState::Ended { .. } => return,
        };
        let Some(namespace) = self.network.clone() else {
            return;
        };
        let host = Arc::clone(&self.settings.tools.host);
        let serving = forward::serve(host, NetworkRequest { namespace }, machine);
        self.forwarding = Some(tokio::spawn(serving).abort_handle());
    }

    /// Notes when the pod, and then its first container, were started.
    fn note_start(&mut self, container: &str) {
        let timeline = &self.settings.tools.timeline;
        if timeline.is_finished() {
            return;
        }
        let is_sandbox = self.tasks.task(container).is_ok_and(|task| task.is_sandbox);
        timeline.done(if is_sandbox {
            "started"
        } else {
            "container started"
        });
        let sandbox = self.tasks.0.values().find(|task| task.is_sandbox);
        if let Some(task) = sandbox.or_else(|| self.tasks.0.get(container)) {
            timeline.publish(&task.bundle);
        }
        if !is_sandbox {
            timeline.finish();
        }
    }

    fn signal(&mut self, id: ProcessId, signal: u32, all: bool, reply: Reply<()>) {
        let state = self.tasks.process(&id).map(|process| process.state);
        let refused = |source| TaskError::Refused {
            process: id.to_string(),
            source,
        };
        let allowed = state.and_then(|state| match state {
            ProcessState::Created if !id.is_init() => Err(refused(Refusal::NotCreated)),
            state => state.takes_signals().map_err(refused),
        });
        let is_sandbox = self
            .tasks
            .task(&id.container)
            .is_ok_and(|task| task.is_sandbox);
        if is_sandbox && !matches!(allowed, Err(TaskError::NotFound(_))) {
            let _ = reply.send(self.signal_sandbox(signal, allowed));
            return;
        }
        if id.is_init() && !matches!(self.guest, GuestState::Up { .. }) {
            let answer = allowed.and_then(|()| self.signal_machine(&id, signal));
            return drop(reply.send(answer));
        }
        if allowed.is_ok() && self.signal_by_qga(&id, signal) {
            return drop(reply.send(Ok(())));
        }
        match allowed.and_then(|()| self.link()) {
            Ok(link) => {
                let request = SignalProcessRequest {
                    container_id: id.container,
                    exec_id: id.exec,
                    signal,
                    all,
                };
                tokio::spawn(work::signal(link, request, reply));
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn status(&mut self, id: &ProcessId) -> Result<ProcessStatus, TaskError> {
        let task = self.tasks.task(&id.container)?;
        let (pid, bundle, paused) = (task.pid.number(), task.bundle.clone(), task.paused);
        let process = self.tasks.process(id)?;
        Ok(ProcessStatus {
            pid,
            bundle,
            paused,
            state: process.state,
            stdio: process.stdio.clone(),
        })
    }
}
