//! How a pod's tasks come to be: the guest is booted, containers and execs are made in it.

use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::runtime::Spec;
use podvisor_annotations::value::boot::BootKind;
use podvisor_proto::containerd::events::{TaskCreate, TaskExecAdded, TaskIo};

use super::actor::{Actor, GuestState};
use super::create::{ContainerPlan, ExecPlan, Made};
use super::ending::GIVEN_UP;
use super::error::{TaskError, chain};
use super::plan::{self, Placement, PodPlan};
use super::process::{ProcessEvent, ProcessState, Refusal};
use super::request::{CreateRequest, PodRequest, ProcessId, Reply};
use super::task::{Process, Task};
use super::task_pid::TaskPid;
use super::undo::Hands;
use super::volumes::Volumes;
use super::work::{self, Message};
use crate::config::Config;
use crate::events::Event;
use crate::guest::boot::{BootError, BootPlan, Guest, boot};
use crate::io::{Stdio, Streams};
use crate::pod::files::PodFiles;
use crate::pod::network::PodNetwork;
use crate::pod::{Bundle, Role, namespaces};

/// Why a container without a pod is no machine.
pub(super) const MACHINE_ALONE: &str =
    "podvisor.io/boot: a container without a pod cannot be a machine";

/// What a creation takes.
enum Creation {
    /// The pod's guest, and a container in it when the pod is one.
    Boot(Box<BootPlan>, Option<Box<ContainerPlan>>),
    /// The guest of a pod whose place on the host is known only now.
    Pod(Box<BootPlan>, Box<Place>),
    /// Nothing yet: the pod's container is a machine of its own.
    Idle(Option<Box<Place>>),
    /// A container in the pod's guest.
    Container(Box<Hands>, Box<ContainerPlan>),
    /// A container that is a machine of its own.
    Machine(Box<ContainerPlan>),
}

/// What a pod is given on the host before it boots, where containerd has not done it.
struct Place {
    /// Its leaf in the cgroup tree, relative to the root.
    leaf: PathBuf,
    /// The files that its containers share.
    files: PodFiles,
}

impl Actor {
    pub(super) fn create(&mut self, request: CreateRequest, reply: Reply<()>) {
        let id = request.id.clone();
        match self.plan_creation(request) {
            Ok((task, creation)) => {
                self.tasks.0.insert(id.clone(), task);
                match creation {
                    Creation::Boot(plan, then) => self.boot(id, *plan, then, reply),
                    Creation::Pod(plan, place) => match self.settle_in(&id, *place) {
                        Ok(()) => self.boot(id, *plan, None, reply),
                        Err(error) => self.settle_creation(&id, Err(error), reply),
                    },
                    Creation::Idle(place) => {
                        let settled = place.map_or(Ok(()), |place| self.settle_in(&id, *place));
                        if settled.is_ok() {
                            self.created(&id, Made::default());
                        }
                        self.settle_creation(&id, settled, reply);
                    }
                    Creation::Machine(plan) => self.create_pet(plan, reply),
                    Creation::Container(hands, plan) => self.make_container(*hands, plan, reply),
                }
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// What a creation takes. Nothing has been done when it is refused.
    fn plan_creation(&mut self, mut request: CreateRequest) -> Result<(Task, Creation), TaskError> {
        if self.tasks.0.contains_key(&request.id) {
            return Err(TaskError::Exists(format!("container {}", request.id)));
        }
        let (path, pod) = (request.bundle.clone(), request.pod.take());
        let (mut bundle, files) = match pod {
            Some(PodRequest { spec, files }) => (Bundle { path, spec }, Some(files)),
            None => (Bundle::load(&path)?, None),
        };
        let role = bundle.role()?;
        let is_sandbox = role == Role::Sandbox;
        let (stdio, oom_score) = (request.stdio.clone(), bundle.oom_score());
        let pid = match role {
            Role::Member { .. } => TaskPid::for_container().map_err(TaskError::Thread)?,
            Role::Sandbox | Role::Standalone => TaskPid::of_pod(),
        };
        let task = Task::new(pid, request.bundle.clone(), stdio, is_sandbox, oom_score);
        let creation = match role {
            Role::Member { .. } => {
                if let Some(files) = &self.files {
                    files.place(&mut bundle.spec);
                }
                let mut plan = ContainerPlan::new(request, bundle, false);
                if self.is_machine_pod() {
                    Creation::Machine(Box::new(plan))
                } else if let Some(pod) = self.waits_for_container() {
                    let boot = pod.boot_plan(plan.bundle.share()?.host_cpus.as_ref())?;
                    plan.may_be_machine = self.may_be_machine_pod();
                    Creation::Boot(Box::new(boot), Some(Box::new(plan)))
                } else {
                    plan.pid_namespace_of = self.joined_container(&plan.bundle.spec)?;
                    plan.may_be_machine = self.may_be_machine_pod();
                    Creation::Container(Box::new(self.hands()?), Box::new(plan))
                }
            }
            Role::Sandbox => {
                let pod = self.plan_pod(&request, &bundle)?;
                let leaf = plan::leaf(&request.id, &bundle, self.placement()?)?;
                let place = files.map(|files| Box::new(Place { leaf, files }));
                let waits = pod.boot() == BootKind::Machine || pod.waits_for_container();
                let creation = if waits {
                    Creation::Idle(place)
                } else {
                    let plan = Box::new(pod.boot_plan(None)?);
                    match place {
                        Some(place) => Creation::Pod(plan, place),
                        None => Creation::Boot(plan, None),
                    }
                };
                self.pod = Some(Arc::new(pod));
                creation
            }
            Role::Standalone => {
                let boot = self.plan_pod(&request, &bundle)?;
                if boot.boot() == BootKind::Machine {
                    return Err(TaskError::Invalid(MACHINE_ALONE.to_owned()));
                }
                let boot = boot.boot_plan(bundle.share()?.host_cpus.as_ref())?;
                let container = ContainerPlan::new(request, bundle, true);
                Creation::Boot(Box::new(boot), Some(Box::new(container)))
            }
        };
        Ok((task, creation))
    }

    /// The container whose processes another one joins; none for the pod's or its own.
    fn joined_container(&self, spec: &Spec) -> Result<Option<String>, TaskError> {
        let joined = namespaces::joined_process(spec);
        let Some(pid) = joined.filter(|pid| *pid != std::process::id()) else {
            return Ok(None);
        };
        let container = self.tasks.container_of(pid);
        let container = container.ok_or_else(|| {
            TaskError::Invalid(format!(
                "linux.namespaces: process {pid} is no container of the pod"
            ))
        })?;
        Ok(Some(container.to_owned()))
    }

    fn placement(&self) -> Result<&Placement, TaskError> {
        let placement = self.settings.placement.as_ref();
        placement.map_err(|e| TaskError::Setup(e.clone()))
    }

    /// Goes where the pod's memory is accounted, which the server's start could not know, before
    /// any of it is used, and writes the pod's files.
    fn settle_in(&mut self, id: &str, place: Place) -> Result<(), TaskError> {
        let host = Arc::clone(&self.settings.tools.host);
        let made = host.enter_cgroup(&place.leaf)?;
        self.settings.record.note(|record| record.cgroups = made);
        if let Ok(placement) = &mut self.settings.placement {
            placement.cgroup = Some(place.leaf);
        }
        host.set_oom_score(self.tasks.task(id)?.oom_score)?;
        host.write_pod_files(&place.files)?;
        self.files = Some(place.files);
        Ok(())
    }

    fn plan_pod(&self, request: &CreateRequest, bundle: &Bundle) -> Result<PodPlan, TaskError> {
        if self.pod.is_some() || !matches!(self.guest, GuestState::None) {
            return Err(TaskError::Exists("the pod's VM".to_owned()));
        }
        let config = Config::load(request.config_path.as_deref())?;
        PodPlan::new(&request.id, bundle, config, self.placement()?)
    }

    /// Whether the pod's containers are machines of their own: they are to be, or one was.
    fn is_machine_pod(&self) -> bool {
        let boot = self.pod.as_ref().map(|pod| pod.boot());
        boot == Some(BootKind::Machine) || self.had_pet
    }

    /// Whether a container that is made now tells what kind of pod this is: it is the first one.
    fn may_be_machine_pod(&self) -> bool {
        let boot = self.pod.as_ref().map(|pod| pod.boot());
        boot == Some(BootKind::Auto) && self.tasks.0.values().all(|task| task.is_sandbox)
    }

    fn boot(
        &mut self,
        id: String,
        plan: BootPlan,
        then: Option<Box<ContainerPlan>>,
        reply: Reply<()>,
    ) {
        if let PodNetwork::Namespace(namespace) = &plan.network {
            let namespace = namespace.clone();
            let noted = Some(namespace.clone());
            self.settings.record.note(|record| record.network = noted);
            self.network = Some(namespace);
        }
        let (tools, out, epoch) = (self.settings.tools.clone(), self.outbox.clone(), self.epoch);
        let booting = tokio::spawn(async move {
            let result = boot(plan, &tools).await;
            let _ = out.send(Message::Booted {
                epoch,
                id,
                result,
                then,
                reply,
            });
        });
        self.guest = GuestState::Booting(booting.abort_handle());
    }

    /// A guest that came up as its boot was given up is nobody's.
    pub(super) fn booted_late(result: Result<Guest, BootError>, reply: Reply<()>) {
        let error = match result {
            Ok(guest) => {
                guest.machine.stop();
                TaskError::NoGuest(GIVEN_UP.to_owned())
            }
            Err(error) => error.into(),
        };
        let _ = reply.send(Err(error));
    }

    pub(super) fn booted(
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
            room,
            binding,
        } = guest;
        let host = Arc::clone(&self.settings.tools.host);
        let volumes = Volumes::spawn(machine.clone(), agent.clone(), host.clone());
        tokio::spawn(work::follow_guest(
            agent.clone(),
            machine.clone(),
            self.outbox.clone(),
        ));
        let out = self.outbox.clone();
        tokio::spawn(work::await_end(ended.clone(), self.epoch, out));
        let hands = Hands {
            host,
            machine,
            agent,
            volumes,
            room,
            binding,
        };
        self.guest = GuestState::Up {
            hands: hands.clone(),
            ended,
        };
        match then {
            Some(plan) => self.make_container(hands, plan, reply),
            None => {
                self.created(&id, Made::default());
                self.settle_creation(&id, Ok(()), reply);
            }
        }
    }

    /// Makes a container in the guest. Where that may change the machine, it waits for other changes.
    fn make_container(&mut self, hands: Hands, plan: Box<ContainerPlan>, reply: Reply<()>) {
        if hands.room.is_any() || hands.binding.is_bound() {
            return self.make_room(plan, reply);
        }
        tokio::spawn(work::container(hands, plan, reply, self.outbox.clone()));
    }

    /// The pod, when it has no guest yet because that waits for a container.
    fn waits_for_container(&self) -> Option<Arc<PodPlan>> {
        let pod = self.pod.as_ref()?;
        let waits = pod.waits_for_container() && matches!(self.guest, GuestState::None);
        waits.then(|| Arc::clone(pod))
    }

    /// A task is ready to be started.
    pub(super) fn created(&mut self, id: &str, made: Made) {
        let Ok(task) = self.tasks.task(id) else {
            return;
        };
        let is_sandbox = task.is_sandbox;
        task.init.connect(made.streams);
        task.undo = made.undo;
        task.share = made.share;
        let event = Event::Create(TaskCreate {
            container_id: id.to_owned(),
            bundle: task.bundle.display().to_string(),
            io: Some(task_io(&task.init.stdio)),
            pid: task.pid.number(),
            ..TaskCreate::default()
        });
        self.settings.publisher.publish(&event);
        self.settings.tools.timeline.done(if is_sandbox {
            "created"
        } else {
            "container created"
        });
        self.apply(&ProcessId::init(id), ProcessEvent::Prepared);
    }

    /// Answers a creation; of a failed one nothing is left.
    pub(super) fn settle_creation(
        &mut self,
        id: &str,
        result: Result<(), TaskError>,
        reply: Reply<()>,
    ) {
        if let Err(error) = &result {
            tracing::error!(id, error = chain(error), "cannot create");
            self.tasks.0.remove(id);
        }
        self.adjust_oom_score();
        self.adjust_cpus();
        let _ = reply.send(result);
    }

    pub(super) fn exec(&mut self, plan: ExecPlan, reply: Reply<()>) {
        let link = match self.link() {
            Ok(link) => Ok(Some(link)),
            // Another agent may answer.
            Err(TaskError::NoAgent) => Ok(None),
            Err(error) => Err(error),
        };
        let begun = link.and_then(|link| {
            let task = self.tasks.task(&plan.container_id)?;
            if task.execs.contains_key(&plan.exec_id) {
                return Err(TaskError::Exists(format!("exec {}", plan.exec_id)));
            }
            let running = matches!(task.init.state, ProcessState::Running);
            if !running {
                let process = ProcessId::init(&plan.container_id).to_string();
                return Err(TaskError::NotRunning(process));
            }
            if task.paused {
                return Err(TaskError::Refused {
                    process: plan.process().to_string(),
                    source: Refusal::Paused,
                });
            }
            task.execs
                .insert(plan.exec_id.clone(), Process::new(plan.stdio.clone()));
            Ok(link)
        });
        match begun {
            Ok(Some(link)) => drop(tokio::spawn(work::exec(
                link,
                plan,
                reply,
                self.outbox.clone(),
            ))),
            Ok(None) => self.exec_by_qga(plan, reply),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    pub(super) fn exec_created(
        &mut self,
        id: &ProcessId,
        result: Result<Streams, TaskError>,
        reply: Reply<()>,
    ) {
        let result = result.and_then(|streams| {
            self.tasks.process(id)?.connect(streams);
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
}

fn task_io(stdio: &Stdio) -> TaskIo {
    TaskIo {
        stdin: stdio.stdin.clone(),
        stdout: stdio.stdout.clone(),
        stderr: stdio.stderr.clone(),
        terminal: stdio.terminal,
    }
}
