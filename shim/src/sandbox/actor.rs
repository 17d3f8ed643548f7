//! The one owner of a pod's state.

use std::path::PathBuf;

use podvisor_proto::agent::v1::{
    PauseContainerRequest, ResizeTerminalRequest, ResumeContainerRequest, SignalProcessRequest,
    UpdateContainerRequest,
};
use podvisor_proto::containerd::events::{
    TaskCreate, TaskExecAdded, TaskExecStarted, TaskIo, TaskStart,
};
use podvisor_vmm::EndReason;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::create::{ContainerPlan, ExecPlan};
use super::error::{TaskError, chain};
use super::plan::{self, Placement};
use super::process::{ProcessEvent, ProcessState};
use super::request::{CreateRequest, ProcessId, ProcessStatus, Reply, Request};
use super::task::{Process, Task, Tasks};
use super::undo::Hands;
use super::volumes::Volumes;
use super::work::{self, Message, Outbox};
use super::{SandboxHandle, undo};
use crate::config::Config;
use crate::events::{Event, Publisher};
use crate::guest::boot::{BootError, BootTools, Guest, boot};
use crate::io::Stdio;
use crate::pod::network::PodNetwork;
use crate::pod::{Bundle, Role};

/// What a pod's owner is told at its start.
pub struct Settings {
    /// Where the server is; an error when it could not set itself up.
    pub placement: Result<Placement, String>,
    /// What a boot works with.
    pub tools: BootTools,
    /// Takes events.
    pub publisher: Publisher,
    /// Called when the network of a pod is about to be redirected.
    pub on_network: Box<dyn Fn(&std::path::Path) + Send>,
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
    /// It has ended, and why. Its tasks may still have to be cleaned.
    Ended { hands: Option<Hands>, why: String },
}

/// Owns a pod.
pub struct Actor {
    pub(super) settings: Settings,
    pub(super) guest: GuestState,
    pub(super) tasks: Tasks,
    /// The pod's network namespace while there is a redirect in it.
    pub(super) network: Option<PathBuf>,
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
            tasks: Tasks::default(),
            network: None,
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
            Request::Update(id, resources_json, reply) => self.update(id, resources_json, reply),
            Request::Freeze {
                container,
                frozen,
                reply,
            } => self.freeze(container, frozen, reply),
            Request::Stats(id, reply) => self.stats(id, reply),
            // Taken by `run`.
            Request::Shutdown(reply) => drop(reply.send(Ok(false))),
        }
    }

    fn result(&mut self, message: Message) {
        match message {
            Message::Booted {
                id,
                result,
                then,
                reply,
            } => self.booted(id, result, then, reply),
            Message::Created { id, result, reply } => {
                let result = result.map(|made| self.created(&id, made.streams, made.undo));
                self.settle_creation(&id, result, reply);
            }
            Message::ExecCreated {
                process,
                result,
                reply,
            } => {
                self.exec_created(&process, result, reply);
            }
            Message::Started {
                process,
                result,
                reply,
            } => self.started(&process, result, reply),
            Message::Cleaned { process, reply } => self.cleaned(&process, reply),
            Message::Guest(event) => self.guest_event(event),
            Message::GuestEnded(reason) => self.guest_ended(&reason),
            Message::Metrics { id, metrics } => {
                if let Ok(task) = self.tasks.task(&id) {
                    task.metrics = Some(metrics);
                }
            }
            Message::Frozen { container, frozen } => self.frozen(&container, frozen),
            Message::Request(request) => self.request(request),
        }
    }

    /// The guest, when it runs.
    pub(super) fn hands(&self) -> Result<Hands, TaskError> {
        match &self.guest {
            GuestState::Up { hands, .. } => Ok(hands.clone()),
            GuestState::None => Err(TaskError::NoGuest("it was not booted".to_owned())),
            GuestState::Booting(_) => Err(TaskError::NoGuest("it boots".to_owned())),
            GuestState::Ended { why, .. } => Err(TaskError::NoGuest(why.clone())),
        }
    }

    fn create(&mut self, request: CreateRequest, reply: Reply<()>) {
        if self.tasks.0.contains_key(&request.id) {
            let _ = reply.send(Err(TaskError::Exists(format!("container {}", request.id))));
            return;
        }
        if let Err((error, reply)) = self.begin_create(request, reply) {
            let _ = reply.send(Err(error));
        }
    }

    fn begin_create(
        &mut self,
        request: CreateRequest,
        reply: Reply<()>,
    ) -> Result<(), (TaskError, Reply<()>)> {
        let bundle = match Bundle::load(&request.bundle) {
            Ok(bundle) => bundle,
            Err(error) => return Err((error.into(), reply)),
        };
        let role = match bundle.role() {
            Ok(role) => role,
            Err(error) => return Err((error.into(), reply)),
        };
        let is_sandbox = role == Role::Sandbox;
        let task = Task::new(request.bundle.clone(), request.stdio.clone(), is_sandbox);
        let id = request.id.clone();
        let config_path = request.config_path.clone();
        let container = |bundle, standalone| ContainerPlan {
            id: request.id,
            bundle,
            rootfs: request.rootfs,
            stdio: request.stdio,
            standalone,
        };
        if let Role::Member { .. } = role {
            match self.hands() {
                Ok(hands) => {
                    let plan = container(bundle, false);
                    tokio::spawn(work::container(hands, plan, reply, self.outbox.clone()));
                }
                Err(error) => return Err((error, reply)),
            }
        } else {
            let plan = match self.plan_boot(&id, &bundle, config_path) {
                Ok(plan) => plan,
                Err(error) => return Err((error, reply)),
            };
            let then = (!is_sandbox).then(|| Box::new(container(bundle, true)));
            self.boot(id.clone(), plan, then, reply);
        }
        self.tasks.0.insert(id, task);
        Ok(())
    }

    fn plan_boot(
        &self,
        id: &str,
        bundle: &Bundle,
        config_path: Option<PathBuf>,
    ) -> Result<crate::guest::boot::BootPlan, TaskError> {
        if !matches!(self.guest, GuestState::None) {
            return Err(TaskError::Exists("the pod's VM".to_owned()));
        }
        let placement = self
            .settings
            .placement
            .as_ref()
            .map_err(|e| TaskError::Setup(e.clone()))?;
        let config = Config::load(config_path.as_deref())?;
        plan::boot_plan(id, bundle, &config, placement)
    }

    fn boot(
        &mut self,
        id: String,
        plan: crate::guest::boot::BootPlan,
        then: Option<Box<ContainerPlan>>,
        reply: Reply<()>,
    ) {
        if let PodNetwork::Namespace(namespace) = &plan.network {
            (self.settings.on_network)(namespace);
            self.network = Some(namespace.clone());
        }
        let (tools, out) = (self.settings.tools.clone(), self.outbox.clone());
        let booting = tokio::spawn(async move {
            let result = boot(plan, &tools).await;
            let _ = out.send(Message::Booted {
                id,
                result,
                then,
                reply,
            });
        });
        self.guest = GuestState::Booting(booting.abort_handle());
    }

    fn booted(
        &mut self,
        id: String,
        result: Result<Guest, BootError>,
        then: Option<Box<ContainerPlan>>,
        reply: Reply<()>,
    ) {
        let guest = match result {
            Ok(guest) => guest,
            Err(error) => {
                self.guest = GuestState::None;
                self.release_network();
                self.settle_creation(&id, Err(error.into()), reply);
                return;
            }
        };
        let Guest {
            machine,
            ended,
            agent,
        } = guest;
        let host = std::sync::Arc::clone(&self.settings.tools.host);
        let volumes = Volumes::spawn(machine.clone(), agent.clone(), host.clone());
        tokio::spawn(work::follow_guest(
            agent.clone(),
            machine.clone(),
            self.outbox.clone(),
        ));
        tokio::spawn(work::await_end(ended.clone(), self.outbox.clone()));
        let hands = Hands {
            host,
            machine,
            agent,
            volumes,
        };
        self.guest = GuestState::Up {
            hands: hands.clone(),
            ended,
        };
        match then {
            Some(plan) => {
                tokio::spawn(work::container(hands, *plan, reply, self.outbox.clone()));
            }
            None => {
                self.created(&id, crate::io::Streams::default(), Vec::new());
                self.settle_creation(&id, Ok(()), reply);
            }
        }
    }

    /// A task is ready to be started.
    fn created(&mut self, id: &str, streams: crate::io::Streams, undo: Vec<undo::Undo>) {
        let Ok(task) = self.tasks.task(id) else {
            return;
        };
        task.init.streams = streams;
        task.undo = undo;
        let event = Event::Create(TaskCreate {
            container_id: id.to_owned(),
            bundle: task.bundle.display().to_string(),
            io: Some(task_io(&task.init.stdio)),
            pid: std::process::id(),
            ..TaskCreate::default()
        });
        self.settings.publisher.publish(&event);
        self.settings.tools.timeline.done("created");
        self.apply(&ProcessId::init(id), ProcessEvent::Prepared);
    }

    /// Answers a creation; of a failed one nothing is left.
    fn settle_creation(&mut self, id: &str, result: Result<(), TaskError>, reply: Reply<()>) {
        if let Err(error) = &result {
            tracing::error!(id, error = chain(error), "cannot create");
            self.tasks.0.remove(id);
        }
        let _ = reply.send(result);
    }

    fn start(&mut self, id: ProcessId, reply: Reply<()>) {
        let begun = self
            .tasks
            .process(&id)
            .and_then(|process| process.apply(&id, ProcessEvent::StartAsked));
        if let Err(error) = begun {
            let _ = reply.send(Err(error));
            return;
        }
        if self
            .tasks
            .task(&id.container)
            .is_ok_and(|task| task.is_sandbox)
        {
            self.started(&id, Ok(()), reply);
            return;
        }
        match self.hands() {
            Ok(hands) => {
                tokio::spawn(work::start(hands.agent, id, reply, self.outbox.clone()));
            }
            Err(error) => {
                self.apply(&id, ProcessEvent::StartFailed(Self::exit_now(255)));
                let _ = reply.send(Err(error));
            }
        }
    }

    fn started(
        &mut self,
        id: &ProcessId,
        result: Result<(), podvisor_proto::ttrpc::Status>,
        reply: Reply<()>,
    ) {
        if let Err(status) = result {
            self.apply(
                id,
                ProcessEvent::StartFailed(Self::exit_of_failed_start(&status)),
            );
            let _ = reply.send(Err(status.into()));
            return;
        }
        let (container_id, exec_id) = (id.container.clone(), id.exec.clone());
        let pid = std::process::id();
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
    }

    /// Notes when the pod, and its first container, were started.
    fn note_start(&mut self, container: &str) {
        let timeline = &self.settings.tools.timeline;
        timeline.done("started");
        let sandbox = self.tasks.0.values().find(|task| task.is_sandbox);
        if let Some(task) = sandbox.or_else(|| self.tasks.0.get(container)) {
            timeline.publish(&task.bundle);
        }
    }

    fn exec(&mut self, plan: ExecPlan, reply: Reply<()>) {
        let begun = self.hands().and_then(|hands| {
            let task = self.tasks.task(&plan.container_id)?;
            if task.execs.contains_key(&plan.exec_id) {
                return Err(TaskError::Exists(format!("exec {}", plan.exec_id)));
            }
            let running = matches!(task.init.state, ProcessState::Running);
            if !running {
                let process = ProcessId::init(&plan.container_id).to_string();
                return Err(TaskError::NotRunning(process));
            }
            task.execs
                .insert(plan.exec_id.clone(), Process::new(plan.stdio.clone()));
            Ok(hands)
        });
        match begun {
            Ok(hands) => drop(tokio::spawn(work::exec(
                hands,
                plan,
                reply,
                self.outbox.clone(),
            ))),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn exec_created(
        &mut self,
        id: &ProcessId,
        result: Result<crate::io::Streams, TaskError>,
        reply: Reply<()>,
    ) {
        let result = result.and_then(|streams| {
            self.tasks.process(id)?.streams = streams;
            Ok(())
        });
        if result.is_ok() {
            let (container_id, exec_id) = (id.container.clone(), id.exec.clone());
            self.settings
                .publisher
                .publish(&Event::ExecAdded(TaskExecAdded {
                    container_id,
                    exec_id,
                }));
            self.apply(id, ProcessEvent::Prepared);
        } else if let Ok(task) = self.tasks.task(&id.container) {
            task.execs.remove(&id.exec);
        }
        let _ = reply.send(result);
    }

    fn signal(&mut self, id: ProcessId, signal: u32, all: bool, reply: Reply<()>) {
        let state = self.tasks.process(&id).map(|process| process.state);
        let refused = |source| TaskError::Refused {
            process: id.to_string(),
            source,
        };
        let allowed = state.and_then(|state| match state {
            ProcessState::Created if !id.is_init() => {
                Err(refused(super::process::Refusal::NotCreated))
            }
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
        match allowed.and_then(|()| self.hands()) {
            Ok(hands) => {
                let request = SignalProcessRequest {
                    container_id: id.container,
                    exec_id: id.exec,
                    signal,
                    all,
                };
                tokio::spawn(work::signal(hands, request, reply));
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn status(&mut self, id: &ProcessId) -> Result<ProcessStatus, TaskError> {
        let task = self.tasks.task(&id.container)?;
        let (bundle, paused) = (task.bundle.clone(), task.paused);
        let process = self.tasks.process(id)?;
        Ok(ProcessStatus {
            bundle,
            paused,
            state: process.state,
            stdio: process.stdio.clone(),
        })
    }

    fn processes(&mut self, id: String, reply: Reply<Vec<u32>>) {
        match self.tasks.task(&id).map(|task| task.is_sandbox) {
            Err(error) => drop(reply.send(Err(error))),
            Ok(true) => drop(reply.send(Ok(Vec::new()))),
            Ok(false) => match self.hands() {
                Ok(hands) => drop(tokio::spawn(work::processes(hands.agent, id, reply))),
                Err(_) => drop(reply.send(Ok(Vec::new()))),
            },
        }
    }

    fn resize(&mut self, id: ProcessId, rows: u32, columns: u32, reply: Reply<()>) {
        let terminal = self
            .tasks
            .process(&id)
            .map(|process| process.stdio.terminal);
        match terminal.and_then(|terminal| Ok((terminal, self.hands()?))) {
            Ok((false, _)) => drop(reply.send(Ok(()))),
            Ok((true, hands)) => {
                let request = ResizeTerminalRequest {
                    container_id: id.container,
                    exec_id: id.exec,
                    rows,
                    columns,
                };
                tokio::spawn(async move {
                    let result = hands.agent.resize_terminal(request).await;
                    let _ = reply.send(result.map(drop).map_err(TaskError::from));
                });
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn update(&mut self, id: String, resources_json: Vec<u8>, reply: Reply<()>) {
        let hands = self.container_hands(&id);
        match hands {
            Ok(hands) => {
                let request = UpdateContainerRequest {
                    container_id: id,
                    resources_json,
                };
                tokio::spawn(async move {
                    let result = hands.agent.update_container(request).await;
                    let _ = reply.send(result.map(drop).map_err(TaskError::from));
                });
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn freeze(&mut self, container: String, frozen: bool, reply: Reply<()>) {
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

    fn stats(&mut self, id: String, reply: Reply<Vec<u8>>) {
        let task = match self.tasks.task(&id) {
            Ok(task) => task,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let (is_sandbox, last) = (task.is_sandbox, task.metrics.clone());
        match (self.hands(), last) {
            (Ok(hands), _) => {
                let out = self.outbox.clone();
                tokio::spawn(work::metrics(hands.agent, id, is_sandbox, reply, out));
            }
            (Err(_), Some(last)) => drop(reply.send(Ok(last))),
            (Err(error), None) => drop(reply.send(Err(error))),
        }
    }
}

fn task_io(stdio: &Stdio) -> TaskIo {
    TaskIo {
        stdin: stdio.stdin.clone(),
        stdout: stdio.stdout.clone(),
        stderr: stdio.stderr.clone(),
        terminal: stdio.terminal,
    }
}
