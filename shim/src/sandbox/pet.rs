//! A pod whose container is a machine of its own (`crate::machine`). The pod itself has no guest: the
//! machine is started with its container, and again with the container's next one.

use std::sync::Arc;

use podvisor_proto::agent::v1::{AgentClient, ResizeTerminalRequest};
use podvisor_vmm::EndReason;
use prost::Message as _;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::actor::{Actor, GuestState};
use super::create::{ContainerPlan, Made};
use super::error::{TaskError, chain};
use super::pet_start::{self, Prepared, Replaced};
use super::process::{Exit, ProcessEvent, ProcessState};
use super::request::{ProcessId, Reply};
use super::task::Process;
use super::undo::Undo;
use super::work::{Link, Message};
use crate::guest::Machine;
use crate::guest::qga::Qga;
use crate::io::{Streams, Transcript};
use crate::pod::binding::Binding;
use crate::pod::network::PodNetwork;
use crate::pod::room::Room;

/// Exit status of a machine that switched itself off.
const POWERED_OFF_STATUS: u32 = 0;

/// A running machine that has a disk of its own.
pub(super) struct Pet {
    /// The container that it is.
    pub container: String,
    /// The machine.
    pub machine: Arc<dyn Machine>,
    /// Its size, and how far it can grow.
    pub room: Room,
    /// How it is bound to its host.
    pub binding: Binding,
    /// Our agent in the machine's own system, while there is one.
    pub agent: Option<AgentClient>,
    /// QEMU's guest agent, which may be there as well.
    pub qga: Option<Arc<Qga>>,
    /// Rows and columns of the terminal at its console, once they are known.
    pub window: Option<(u32, u32)>,
    /// What follows its life.
    pub life: AbortHandle,
    /// Its transcript, until what ends that is said.
    pub transcript: Option<Transcript>,
}

/// A machine that was started.
pub(super) struct Started {
    pub machine: Arc<dyn Machine>,
    pub room: Room,
    pub binding: Binding,
    pub ended: watch::Receiver<Option<EndReason>>,
    pub streams: Streams,
    pub transcript: Transcript,
    pub life: AbortHandle,
}

/// Something that happened in a machine's life.
pub(super) enum PetNews {
    /// Our agent answers in its own system.
    Agent(AgentClient),
    /// It does so no more.
    AgentLost,
    /// It rebooted, and nothing on its disks can be booted any more.
    Unbootable(String),
}

impl Actor {
    /// Makes a container that is a machine: finds its disks. A guest that the pod was given in advance
    /// is ended.
    pub(super) fn create_pet(&mut self, plan: Box<ContainerPlan>, reply: Reply<()>) {
        let id = plan.id.clone();
        let alone = self
            .tasks
            .0
            .iter()
            .all(|(other, task)| task.is_sandbox || *other == id);
        let pod = match (self.pod.clone(), alone) {
            (Some(pod), true) => pod,
            (None, _) => {
                let why = super::creation::MACHINE_ALONE.to_owned();
                return self.settle_creation(&id, Err(TaskError::Invalid(why)), reply);
            }
            (Some(_), false) => {
                let why = "a machine is the only container of its pod".to_owned();
                return self.settle_creation(&id, Err(TaskError::Invalid(why)), reply);
            }
        };
        self.had_pet = true;
        let replaced = self.replaced_guest();
        let (tools, out) = (self.settings.tools.clone(), self.outbox.clone());
        tokio::spawn(async move {
            let result = pet_start::prepare(&pod, *plan, replaced, &tools).await;
            let result = result.map(Box::new);
            let _ = out.send(Message::PetPrepared { id, result, reply });
        });
    }

    /// Takes the guest that is there, with the network that leads to it.
    fn replaced_guest(&mut self) -> Replaced {
        self.epoch += 1;
        let machine = match std::mem::replace(&mut self.guest, GuestState::None) {
            GuestState::Up { hands, .. } => Some(hands.machine),
            GuestState::Pet(pet, _) => Some(pet.machine),
            GuestState::Ended { .. } | GuestState::Booting(_) | GuestState::None => None,
        };
        if let Some(forwarding) = self.forwarding.take() {
            forwarding.abort();
        }
        Replaced {
            machine,
            network: self.network.take(),
        }
    }

    pub(super) fn pet_prepared(
        &mut self,
        id: &str,
        result: Result<Box<Prepared>, TaskError>,
        reply: Reply<()>,
    ) {
        let result = result.map(|prepared| {
            let undo = vec![Undo::Unmount(prepared.root.clone())];
            let share = prepared.share.clone();
            self.prepared = Some(prepared);
            self.created(
                id,
                Made {
                    undo,
                    share,
                    ..Made::default()
                },
            );
        });
        self.settle_creation(id, result, reply);
    }

    /// Whether a container is a machine that waits for its start.
    pub(super) fn is_prepared_pet(&self, id: &ProcessId) -> bool {
        let prepared = self.prepared.as_ref();
        id.is_init() && prepared.is_some_and(|prepared| prepared.container == id.container)
    }

    /// Starts a machine. It is asked once: the state table refuses more.
    pub(super) fn start_pet(&mut self, id: &ProcessId, reply: Reply<()>) {
        let Some(prepared) = self.prepared.take() else {
            return drop(reply.send(Err(TaskError::NotFound(id.to_string()))));
        };
        if let PodNetwork::Namespace(namespace) = &prepared.network {
            let noted = Some(namespace.clone());
            self.settings.record.note(|record| record.network = noted);
            self.network = Some(namespace.clone());
        }
        self.ending_signal = None;
        self.epoch += 1;
        let (tools, out, epoch) = (self.settings.tools.clone(), self.outbox.clone(), self.epoch);
        let starting = tokio::spawn(pet_start::start(prepared, tools, reply, epoch, out));
        self.guest = GuestState::Booting(starting.abort_handle());
    }

    /// A machine takes its time before it boots: who waits is answered now.
    pub(super) fn pet_delayed(&mut self, container: &str, reply: Reply<()>) {
        self.started(&ProcessId::init(container), Ok(()), reply);
    }

    /// A machine whose start was given up meanwhile has ended: it does not start after that.
    pub(super) fn pet_delayed_late(reply: Reply<()>) {
        let _ = reply.send(Err(TaskError::NoGuest(super::ending::GIVEN_UP.to_owned())));
    }

    pub(super) fn pet_started(
        &mut self,
        container: &str,
        result: Result<Started, TaskError>,
        reply: Option<Reply<()>>,
    ) {
        let id = ProcessId::init(container);
        let started = match result {
            Ok(started) => started,
            Err(error) => return self.pet_failed(&id, error, reply),
        };
        let Started {
            machine,
            room,
            binding,
            ended,
            streams,
            transcript,
            life,
        } = started;
        if let Ok(process) = self.tasks.process(&id) {
            process.connect(streams);
        }
        let pet = Pet {
            container: container.to_owned(),
            qga: machine
                .guest_agent_port()
                .map(|port| Arc::new(Qga::new(port))),
            machine,
            room,
            binding,
            agent: None,
            window: None,
            life,
            transcript: Some(transcript),
        };
        self.guest = GuestState::Pet(pet, ended);
        match reply {
            Some(reply) => self.started(&id, Ok(()), reply),
            None => self.forward_ports(container),
        }
    }

    /// A machine that came up as its start was given up is nobody's.
    pub(super) fn pet_started_late(result: Result<Started, TaskError>, reply: Option<Reply<()>>) {
        let error = match result {
            Ok(started) => {
                started.life.abort();
                started.machine.stop();
                TaskError::NoGuest(super::ending::GIVEN_UP.to_owned())
            }
            Err(error) => error,
        };
        if let Some(reply) = reply {
            let _ = reply.send(Err(error));
        }
    }

    /// A machine does not start: its container has ended.
    fn pet_failed(&mut self, id: &ProcessId, error: TaskError, reply: Option<Reply<()>>) {
        tracing::error!(
            container = id.container,
            error = chain(&error),
            "cannot start the machine"
        );
        self.guest = GuestState::None;
        self.release_network();
        let exit = Self::exit_now(super::ending::GUEST_ENDED_STATUS);
        match reply {
            Some(reply) => {
                self.apply(id, ProcessEvent::StartFailed(exit));
                let _ = reply.send(Err(error));
            }
            None => self.apply(id, ProcessEvent::Ended(exit)),
        }
        self.settle_stop();
    }

    pub(super) fn pet_news(&mut self, news: PetNews) {
        let GuestState::Pet(pet, _) = &mut self.guest else {
            return;
        };
        match news {
            PetNews::Agent(agent) => {
                if let Some((rows, columns)) = pet.window {
                    tokio::spawn(tell_window(agent.clone(), rows, columns));
                }
                pet.agent = Some(agent);
            }
            PetNews::AgentLost => {
                pet.agent = None;
                self.end_execs(|process| process.by_qga.is_none());
            }
            PetNews::Unbootable(why) => {
                if let Some(transcript) = pet.transcript.take() {
                    transcript.say(why);
                }
            }
        }
    }

    /// What ran in the machine's system by an agent is gone with it.
    fn end_execs(&mut self, concerns: impl Fn(&Process) -> bool) {
        for id in self.tasks.ids() {
            let ran = self.tasks.process(&id).is_ok_and(|process| {
                !matches!(process.state, ProcessState::Deleting(_)) && concerns(process)
            });
            if !id.is_init() && ran {
                let exit = Self::exit_now(super::ending::GUEST_ENDED_STATUS);
                self.apply(&id, ProcessEvent::Ended(exit));
            }
        }
    }

    /// The machine runs no more: its container has ended, its pod has not.
    pub(super) fn pet_ended(&mut self, mut pet: Pet, reason: &EndReason) {
        pet.life.abort();
        let exit = self.exit_of_pet(reason);
        if exit.status == POWERED_OFF_STATUS {
            tracing::info!(%reason, "the machine has ended");
        } else {
            tracing::error!(%reason, "the machine has ended");
            if self.ending_signal.is_none()
                && let Some(transcript) = pet.transcript.take()
            {
                transcript.say(reason.to_string());
            }
        }
        self.end_execs(|_| true);
        self.apply(&ProcessId::init(&pet.container), ProcessEvent::Ended(exit));
        self.guest = GuestState::None;
        self.release_network();
        self.settle_stop();
    }

    fn exit_of_pet(&self, reason: &EndReason) -> Exit {
        let status = match (reason, self.ending_signal) {
            // A reset ends only a machine that is to end by it.
            (EndReason::Shutdown | EndReason::Reset, _) => POWERED_OFF_STATUS,
            (EndReason::Killed, Some(signal)) => super::ending::SIGNAL_STATUS + signal,
            _ => super::ending::GUEST_ENDED_STATUS,
        };
        Self::exit_now(status)
    }

    /// A signal to a container that is a machine, or to one whose guest is gone.
    pub(super) fn signal_machine(&mut self, id: &ProcessId, signal: u32) -> Result<(), TaskError> {
        let ends = [libc::SIGTERM, libc::SIGKILL, libc::SIGINT, libc::SIGQUIT];
        let ends = ends.iter().any(|number| number.unsigned_abs() == signal);
        let waits = self.is_prepared_pet(id);
        match &self.guest {
            GuestState::Pet(..) => return self.signal_pet(signal),
            GuestState::Booting(_) if self.had_pet => {
                if ends {
                    self.give_boot_up();
                }
            }
            _ if waits => self.prepared = self.prepared.take().filter(|_| !ends),
            _ => return self.hands().map(drop),
        }
        if ends {
            let exit = Self::exit_now(super::ending::SIGNAL_STATUS + signal);
            self.apply(id, ProcessEvent::Ended(exit));
            self.apply(id, ProcessEvent::StartFailed(exit));
        }
        Ok(())
    }

    /// A signal to the machine itself: SIGKILL pulls the plug, others that end programs press the
    /// power button; what else there is means nothing to it.
    pub(super) fn signal_pet(&mut self, signal: u32) -> Result<(), TaskError> {
        let GuestState::Pet(pet, _) = &self.guest else {
            return Ok(());
        };
        let is = |number: i32| number.unsigned_abs() == signal;
        if is(libc::SIGKILL) {
            self.ending_signal.get_or_insert(signal);
            pet.machine.stop();
        } else if [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGPWR]
            .into_iter()
            .any(is)
        {
            pet.machine.press_power_button();
        }
        Ok(())
    }

    /// How processes in the guest are made and steered, whichever kind of guest it is.
    pub(super) fn link(&self) -> Result<Link, TaskError> {
        let GuestState::Pet(pet, _) = &self.guest else {
            let hands = self.hands()?;
            return Ok(Link {
                machine: hands.machine,
                agent: hands.agent,
                is_expendable: true,
            });
        };
        let agent = pet.agent.clone().ok_or(TaskError::NoAgent)?;
        Ok(Link {
            machine: Arc::clone(&pet.machine),
            agent,
            is_expendable: false,
        })
    }

    /// Whether a container is a machine that runs.
    pub(super) fn is_machine(&self, container: &str) -> bool {
        matches!(&self.guest, GuestState::Pet(pet, _) if pet.container == container)
    }

    /// Tells the machine's system how large the terminal at its console is. Nobody but our agent can
    /// be told, and without it nothing is lost.
    pub(super) fn resize_console(&mut self, rows: u32, columns: u32, reply: Reply<()>) {
        if let GuestState::Pet(pet, _) = &mut self.guest {
            pet.window = Some((rows, columns));
            if let Some(agent) = pet.agent.clone() {
                tokio::spawn(tell_window(agent, rows, columns));
            }
        }
        let _ = reply.send(Ok(()));
    }

    /// Stops all of a machine, or lets it go on.
    pub(super) fn freeze_pet(&self, container: String, frozen: bool, reply: Reply<()>) {
        let GuestState::Pet(pet, _) = &self.guest else {
            return drop(reply.send(Err(TaskError::NotRunning(container))));
        };
        let (machine, out) = (Arc::clone(&pet.machine), self.outbox.clone());
        tokio::task::spawn_blocking(move || {
            let result = if frozen {
                machine.pause()
            } else {
                machine.resume()
            };
            if result.is_ok() {
                let _ = out.send(Message::Frozen { container, frozen });
            }
            let _ = reply.send(result.map_err(TaskError::Order));
        });
    }

    /// What the host's groups say of a machine.
    pub(super) fn host_metrics(&self) -> Result<Vec<u8>, TaskError> {
        let placement = self.settings.placement.as_ref();
        let placement = placement.map_err(|e| TaskError::Setup(e.clone()))?;
        let leaf = placement.cgroup.clone().unwrap_or_default();
        Ok(self.settings.tools.host.metrics(&leaf)?.encode_to_vec())
    }
}

/// Tells a machine how large the terminal at its console is.
async fn tell_window(agent: AgentClient, rows: u32, columns: u32) {
    let request = ResizeTerminalRequest {
        rows,
        columns,
        ..ResizeTerminalRequest::default()
    };
    if let Err(error) = agent.resize_terminal(request).await {
        tracing::debug!(%error, "the console keeps its size");
    }
}
