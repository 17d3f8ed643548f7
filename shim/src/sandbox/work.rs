//! Work that takes time, done in tasks of their own; each ends with a message to the pod.

use std::sync::Arc;
use std::time::Duration;

use podvisor_proto::agent::v1::{
    AgentClient, ContainerStatsRequest, Event as AgentEvent, ListProcessesRequest,
    NextEventsRequest, SandboxStatsRequest, ShutdownRequest, SignalProcessRequest,
    StartProcessRequest,
};
use podvisor_proto::ttrpc::{CallOptions, Code, Status};
use podvisor_vmm::EndReason;
use tokio::sync::{mpsc, watch};

use super::changes::{Change, Changed};
use super::create::{self, ContainerPlan, ExecPlan, Made};
use super::error::TaskError;
use super::pet::{PetNews, Started};
use super::pet_exec;
use super::pet_start::Prepared;
use super::request::{ProcessId, Reply, Request};
use super::undo::{Hands, Undo, delete_process, undo_all};
use crate::guest::Machine;
use crate::guest::boot::{BootError, Guest};
use crate::host::HostOps;
use crate::io::Streams;

/// How long containerd may take for a process's last output.
pub(super) const DRAIN: Duration = Duration::from_secs(10);
/// How long what a process said that does not start may take to reach containerd.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a guest may take to write its files back before it is ended.
const POWER_OFF: Duration = Duration::from_secs(3);
/// How long a guest may take for a list of processes, which is for information only.
const LIST: Duration = Duration::from_secs(1);
/// The pause after an agent that could not be talked to.
pub(super) const AGENT_PAUSE: Duration = Duration::from_millis(200);
/// A long poll is made anew after this time.
const POLL: Duration = Duration::from_secs(3600);

/// What the pod's owner is told.
pub(super) enum Message {
    /// A request of containerd.
    Request(Request),
    /// The boot is over; `then` is made next.
    Booted {
        epoch: u64,
        id: String,
        result: Result<Guest, BootError>,
        then: Option<Box<ContainerPlan>>,
        reply: Reply<()>,
    },
    /// A container was made, or not.
    Created {
        id: String,
        result: Result<Made, TaskError>,
        reply: Reply<()>,
    },
    /// An exec was made, or not.
    ExecCreated {
        process: ProcessId,
        result: Result<Streams, TaskError>,
        reply: Reply<()>,
    },
    /// An exec by a machine's own agent was made, or not.
    QgaPrepared {
        process: ProcessId,
        result: Result<(Streams, Box<pet_exec::Prepared>), TaskError>,
        reply: Reply<()>,
    },
    /// Such an exec has ended.
    QgaEnded { process: ProcessId, status: u32 },
    /// A process was started, or not.
    Started {
        process: ProcessId,
        result: Result<(), Status>,
        reply: Reply<()>,
    },
    /// What was left of a process is gone.
    Cleaned {
        process: ProcessId,
        reply: Reply<super::request::Deleted>,
    },
    /// Something happened in the guest.
    Guest(AgentEvent),
    /// The pod's network is as it was before the pod.
    NetworkReleased,
    /// The guest of that epoch does not run any more.
    GuestEnded { epoch: u64, reason: EndReason },
    /// What was to become a container is a machine of its own.
    IsMachine {
        plan: Box<ContainerPlan>,
        reply: Reply<()>,
    },
    /// A machine's disks were found, or not.
    PetPrepared {
        id: String,
        result: Result<Box<Prepared>, TaskError>,
        reply: Reply<()>,
    },
    /// A machine boots later: who waits for its start is answered now.
    PetDelayed {
        epoch: u64,
        container: String,
        reply: Reply<()>,
    },
    /// A machine boots its own system, or does not start.
    PetStarted {
        epoch: u64,
        container: String,
        result: Box<Result<Started, TaskError>>,
        reply: Option<Reply<()>>,
    },
    /// Something happened in a machine's life.
    PetNews { epoch: u64, news: PetNews },
    /// Metrics were read.
    Metrics { id: String, metrics: Vec<u8> },
    /// What a container may use was changed, or not.
    Changed {
        epoch: u64,
        change: Change,
        result: Result<Box<Changed>, TaskError>,
    },
    /// A container was stopped or goes on.
    Frozen { container: String, frozen: bool },
}

impl Message {
    /// The guest of which it tells, where that is of interest only while it is the pod's.
    pub(super) fn epoch(&self) -> Option<u64> {
        match self {
            Self::Booted { epoch, .. }
            | Self::GuestEnded { epoch, .. }
            | Self::PetDelayed { epoch, .. }
            | Self::PetStarted { epoch, .. }
            | Self::PetNews { epoch, .. } => Some(*epoch),
            _ => None,
        }
    }
}

/// Where messages go.
pub(super) type Outbox = mpsc::UnboundedSender<Message>;

/// How processes in a guest are made and steered.
#[derive(Clone)]
pub(super) struct Link {
    /// The guest's machine.
    pub machine: Arc<dyn Machine>,
    /// The guest's agent.
    pub agent: AgentClient,
    /// Whether the guest is nothing but its containers: it may be ended to end one of them.
    pub is_expendable: bool,
}

pub(super) async fn container(
    hands: Hands,
    plan: Box<ContainerPlan>,
    reply: Reply<()>,
    out: Outbox,
) {
    let id = plan.id.clone();
    let machine = plan.may_be_machine.then(|| plan.clone());
    let message = match (create::container(&hands, *plan).await, machine) {
        (Err(TaskError::IsMachine), Some(plan)) => Message::IsMachine { plan, reply },
        (result, _) => Message::Created { id, result, reply },
    };
    let _ = out.send(message);
}

pub(super) async fn exec(link: Link, plan: ExecPlan, reply: Reply<()>, out: Outbox) {
    let process = plan.process();
    let result = create::exec(&link, plan).await;
    let _ = out.send(Message::ExecCreated {
        process,
        result,
        reply,
    });
}

pub(super) async fn start(agent: AgentClient, process: ProcessId, reply: Reply<()>, out: Outbox) {
    let request = StartProcessRequest {
        container_id: process.container.clone(),
        exec_id: process.exec.clone(),
    };
    let result = agent.start_process(request).await.map(drop);
    let _ = out.send(Message::Started {
        process,
        result,
        reply,
    });
}

/// Sends a signal. When not even SIGKILL is answered, the guest is ended: a kill never depends on
/// it.
pub(super) async fn signal(link: Link, request: SignalProcessRequest, reply: Reply<()>) {
    let kills = request.signal == libc::SIGKILL.unsigned_abs();
    let result = link.agent.signal_process(request).await;
    let stuck = matches!(&result, Err(status) if status.code() == Code::DeadlineExceeded);
    if kills && stuck && link.is_expendable {
        tracing::error!("the guest does not answer to SIGKILL and is ended");
        link.machine.stop();
        let _ = reply.send(Ok(()));
        return;
    }
    let _ = reply.send(result.map(drop).map_err(TaskError::from));
}

/// What is left of a process, and what takes it back.
pub(super) struct Remains {
    pub process: ProcessId,
    pub streams: Streams,
    pub undo: Vec<Undo>,
    pub host: Arc<dyn HostOps>,
    /// A guest of containers.
    pub hands: Option<Hands>,
    /// The guest's agent.
    pub link: Option<Link>,
}

/// Takes back all that a process has.
pub(super) async fn clean(remains: Remains, reply: Reply<super::request::Deleted>, out: Outbox) {
    let Remains {
        process,
        streams,
        undo,
        host,
        hands,
        link,
    } = remains;
    streams.drain(DRAIN).await;
    if let Some(link) = link.filter(|_| !process.is_init()) {
        delete_process(&link.agent, process.clone()).await;
    }
    undo_all(&host, hands.as_ref(), undo).await;
    let _ = out.send(Message::Cleaned { process, reply });
}

pub(super) async fn processes(agent: AgentClient, container_id: String, reply: Reply<Vec<u32>>) {
    let agent = agent.with_options(CallOptions::new().with_timeout(LIST));
    let answer = agent
        .list_processes(ListProcessesRequest { container_id })
        .await;
    let _ = reply.send(Ok(answer.map(|answer| answer.pids).unwrap_or_default()));
}

pub(super) async fn metrics(
    agent: AgentClient,
    id: String,
    whole_guest: bool,
    reply: Reply<Vec<u8>>,
    out: Outbox,
) {
    let metrics = if whole_guest {
        agent
            .sandbox_stats(SandboxStatsRequest {})
            .await
            .map(|answer| answer.metrics)
    } else {
        let request = ContainerStatsRequest {
            container_id: id.clone(),
        };
        agent
            .container_stats(request)
            .await
            .map(|answer| answer.metrics)
    };
    if let Ok(metrics) = &metrics {
        let _ = out.send(Message::Metrics {
            id,
            metrics: metrics.clone(),
        });
    }
    let _ = reply.send(metrics.map_err(TaskError::from));
}

/// Passes on what happens in the guest, in order. A guest whose agent is gone is of no use.
pub(super) async fn follow_guest(agent: AgentClient, machine: Arc<dyn Machine>, out: Outbox) {
    pass_on_events(&agent, &out).await;
    machine.stop();
}

/// Passes on what an agent tells, in order, until it does so no more.
pub(super) async fn pass_on_events(agent: &AgentClient, out: &Outbox) {
    let agent = agent.with_options(CallOptions::new().with_timeout(POLL));
    let mut after = 0;
    loop {
        match agent.next_events(NextEventsRequest { after }).await {
            Ok(answer) => {
                for event in answer.events {
                    after = event.sequence;
                    if out.send(Message::Guest(event)).is_err() {
                        return;
                    }
                }
            }
            Err(status) if status.code() == Code::DeadlineExceeded => {}
            Err(status) => {
                tracing::debug!(%status, "no more events of the guest");
                return;
            }
        }
    }
}

/// Tells when the guest has ended.
pub(super) async fn await_end(
    mut ended: watch::Receiver<Option<EndReason>>,
    epoch: u64,
    out: Outbox,
) {
    let reason = match ended.wait_for(Option::is_some).await {
        Ok(reason) => reason.clone(),
        Err(_) => None,
    };
    let reason = reason.unwrap_or(EndReason::Killed);
    let _ = out.send(Message::GuestEnded { epoch, reason });
}

/// Ends the guest: asks it to write its files back, and does not wait long.
pub(super) async fn power_off(hands: Hands, mut ended: watch::Receiver<Option<EndReason>>) {
    let agent = hands
        .agent
        .with_options(CallOptions::new().with_timeout(POWER_OFF));
    let end = async {
        let _ = agent.shutdown(ShutdownRequest {}).await;
        let _ = ended.wait_for(Option::is_some).await;
    };
    if tokio::time::timeout(POWER_OFF, end).await.is_err() {
        tracing::warn!("the guest did not switch itself off in time");
    }
    hands.machine.stop();
}
