//! How processes, guests and pods end.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use podvisor_annotations::value::boot::BootKind;
use podvisor_proto::agent::v1::{Event as AgentEvent, event::Kind};
use podvisor_proto::containerd::events::{TaskDelete, TaskExit, TaskOom, TaskPaused, TaskResumed};
use podvisor_proto::containerd::timestamp;
use podvisor_proto::ttrpc::{Code, Status};
use podvisor_vmm::EndReason;

use super::actor::{Actor, GuestState};
use super::error::{TaskError, chain};
use super::plan::PodPlan;
use super::process::{Exit, ProcessEvent, ProcessState};
use super::request::{Deleted, ProcessId, Reply};
use super::work::{self, Message};
use crate::events::Event;
use crate::guest::boot::ConsoleLines;
use crate::host::{ConfineRequest, NetworkRequest};
use crate::pod::cpu_set::CpuSet;

/// Exit status of containers whose guest ended under them.
pub(super) const GUEST_ENDED_STATUS: u32 = 255;
/// Exit status of a command that is not there, and of one that cannot be executed (POSIX, `sh`).
const NOT_FOUND_STATUS: u32 = 127;
const NOT_EXECUTABLE_STATUS: u32 = 126;
/// What a signal adds to its number in an exit status.
pub(super) const SIGNAL_STATUS: u32 = 128;
/// Why a boot came to nothing that was not let come to its end.
pub(super) const GIVEN_UP: &str = "it was ended while it booted";
/// How long the server's last events may take.
const FLUSH: Duration = Duration::from_secs(1);

impl Actor {
    pub(super) fn exit_now(status: u32) -> Exit {
        Exit {
            status,
            at: SystemTime::now(),
        }
    }

    pub(super) fn exit_of_failed_start(status: &Status) -> Exit {
        Self::exit_now(match status.code() {
            Code::NotFound => NOT_FOUND_STATUS,
            Code::PermissionDenied => NOT_EXECUTABLE_STATUS,
            _ => GUEST_ENDED_STATUS,
        })
    }

    /// Lets `event` happen to a process, and tells containerd when it ended by it.
    pub(super) fn apply(&mut self, id: &ProcessId, event: ProcessEvent) {
        let exit = self
            .tasks
            .process(id)
            .and_then(|process| process.apply(id, event));
        if let Ok(Some(exit)) = exit {
            self.publish_exit(id, exit);
        }
    }

    fn publish_exit(&self, id: &ProcessId, exit: Exit) {
        let named = if id.is_init() {
            &id.container
        } else {
            &id.exec
        };
        self.settings.publisher.publish(&Event::Exit(TaskExit {
            container_id: id.container.clone(),
            id: named.clone(),
            pid: self.tasks.pid(&id.container),
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)),
        }));
    }

    /// Makes the host's OOM killer see the pod as its least expendable container.
    pub(super) fn adjust_oom_score(&self) {
        let Some(score) = self.tasks.oom_score() else {
            return;
        };
        if let Err(error) = self.settings.tools.host.set_oom_score(score) {
            tracing::warn!(error = chain(&error), "the pod's OOM score stays");
        }
    }

    /// Keeps the machine on the CPUs of the host that its containers name.
    pub(super) fn adjust_cpus(&mut self) {
        let cpus = self.tasks.host_cpus();
        let placement = self.settings.placement.as_ref().ok();
        let Some(cgroup) = placement.and_then(|placement| placement.cgroup.clone()) else {
            return;
        };
        if cpus == self.host_cpus {
            return;
        }
        let request = ConfineRequest {
            cgroup,
            cpus: cpus.as_ref().map(CpuSet::to_string).unwrap_or_default(),
        };
        self.host_cpus = cpus;
        if let Err(error) = self.settings.tools.host.confine(&request) {
            tracing::warn!(
                error = chain(&error),
                cpus = request.cpus,
                "the pod's VM stays on its CPUs"
            );
        }
    }

    /// Something happened in the guest. What it says of processes that do not exist is ignored.
    pub(super) fn guest_event(&mut self, event: AgentEvent) {
        match event.kind {
            Some(Kind::Exited(exited)) => {
                let id = ProcessId {
                    container: exited.container_id,
                    exec: exited.exec_id,
                };
                let nanos = u64::try_from(exited.exited_at_ns).unwrap_or_default();
                let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos);
                // A status has eight bits, whatever the guest says.
                let exit = Exit {
                    status: exited.exit_status & 0xff,
                    at,
                };
                self.apply(&id, ProcessEvent::Ended(exit));
            }
            Some(Kind::OutOfMemory(oom)) if self.tasks.task(&oom.container_id).is_ok() => {
                let event = TaskOom {
                    container_id: oom.container_id,
                };
                self.settings.publisher.publish(&Event::Oom(event));
            }
            Some(Kind::OutOfMemory(_)) | None => {}
        }
    }

    /// The guest runs no more: so does nothing in it.
    pub(super) fn guest_ended(&mut self, reason: &EndReason) {
        let guest = std::mem::replace(&mut self.guest, GuestState::None);
        let hands = match guest {
            GuestState::Pet(pet, _) => return self.pet_ended(pet, reason),
            GuestState::Up { hands, .. } => Some(hands),
            GuestState::Ended { hands, .. } => hands,
            GuestState::None | GuestState::Booting(_) => None,
        };
        if self.ending_signal.is_some() {
            tracing::info!(%reason, "the guest has ended");
        } else {
            let console = hands
                .as_ref()
                .map(|hands| ConsoleLines::of(&*hands.machine).to_string());
            tracing::error!(%reason, console = console.unwrap_or_default(), "the guest has ended by itself");
        }
        self.guest = GuestState::Ended {
            hands,
            why: reason.to_string(),
        };
        let status = self
            .ending_signal
            .map_or(GUEST_ENDED_STATUS, |signal| SIGNAL_STATUS + signal);
        for id in self.tasks.ids() {
            self.apply(&id, ProcessEvent::Ended(Self::exit_now(status)));
        }
        self.forget_machine();
        self.release_network();
        self.settle_stop();
    }

    /// Takes no more connections from the pod's network namespace and removes the redirect from
    /// it, if there is one.
    pub(super) fn release_network(&mut self) {
        if let Some(forwarding) = self.forwarding.take() {
            forwarding.abort();
        }
        let Some(namespace) = self.network.take() else {
            return;
        };
        let host = Arc::clone(&self.settings.tools.host);
        let out = self.outbox.clone();
        self.releasing += 1;
        tokio::task::spawn_blocking(move || {
            if let Err(error) = host.release_network(&NetworkRequest { namespace }) {
                tracing::warn!(error = chain(&error), "the pod's network is not released");
            }
            let _ = out.send(Message::NetworkReleased);
        });
    }

    pub(super) fn network_released(&mut self) {
        self.releasing -= 1;
        self.settle_stop();
    }

    /// Ends the guest, if there is one. Nobody is refused: what is stopped stays so.
    pub(super) fn stop(&mut self, reply: Reply<()>) {
        self.stopping.push(reply);
        // It cannot be refused when the state allows it.
        let _ = self.signal_sandbox(libc::SIGKILL.unsigned_abs(), Ok(()));
        self.settle_stop();
    }

    /// Answers who waits for the pod's stop, once nothing of its guest and its network is left.
    pub(super) fn settle_stop(&mut self) {
        let over = match &self.guest {
            GuestState::None | GuestState::Ended { .. } => self.releasing == 0,
            GuestState::Booting(_) | GuestState::Up { .. } | GuestState::Pet(..) => false,
        };
        if over {
            for reply in self.stopping.drain(..) {
                let _ = reply.send(Ok(()));
            }
        }
    }

    /// Lets go of an ended machine, its memory and its taps, when no container is left for whose
    /// clean-up it is needed.
    fn forget_machine(&mut self) {
        let containers = self.tasks.0.values().any(|task| !task.is_sandbox);
        if let GuestState::Ended { hands, .. } = &mut self.guest
            && !containers
        {
            *hands = None;
        }
    }

    /// A signal to the pod ends it, whatever its guest does.
    pub(super) fn signal_sandbox(
        &mut self,
        signal: u32,
        allowed: Result<(), TaskError>,
    ) -> Result<(), TaskError> {
        let ends = [libc::SIGTERM, libc::SIGKILL, libc::SIGINT, libc::SIGQUIT];
        let ends = ends.iter().any(|number| number.unsigned_abs() == signal);
        match &self.guest {
            GuestState::Booting(_) if ends && !self.has_no_guest_of_its_own() => {
                self.give_boot_up();
                for id in self.tasks.ids() {
                    self.tasks.0.remove(&id.container);
                }
                return Ok(());
            }
            _ => allowed?,
        }
        if !ends {
            return Ok(());
        }
        self.ending_signal.get_or_insert(signal);
        match &self.guest {
            GuestState::Up { hands, ended } => {
                tokio::spawn(work::power_off(hands.clone(), ended.clone()));
            }
            GuestState::Pet(pet, _) => pet.machine.stop(),
            GuestState::None | GuestState::Booting(_) | GuestState::Ended { .. } => {}
        }
        if self.has_no_guest_of_its_own() {
            self.end_pod(signal);
        }
        Ok(())
    }

    /// Whether the pod is nothing but a place: of a machine, which lives and ends with its container, or of
    /// a guest that comes with the first container.
    pub(super) fn has_no_guest_of_its_own(&self) -> bool {
        let has_guest = matches!(self.guest, GuestState::Up { .. } | GuestState::Ended { .. });
        let is_place = |pod: &Arc<PodPlan>| {
            pod.boot() == BootKind::Machine || (pod.waits_for_container() && !has_guest)
        };
        self.had_pet || self.pod.as_ref().is_some_and(is_place)
    }

    /// Gives a boot up, and whether there was one. It may have come to its end all the same: what is
    /// heard of it from now on is not about the pod.
    pub(super) fn give_boot_up(&mut self) -> bool {
        let GuestState::Booting(booting) = &self.guest else {
            return false;
        };
        booting.abort();
        self.epoch += 1;
        self.guest = GuestState::None;
        self.release_network();
        true
    }

    /// Ends such a pod, and what of its machine has not become one.
    fn end_pod(&mut self, signal: u32) {
        self.prepared = None;
        let boot_given_up = self.give_boot_up();
        let exit = Self::exit_now(SIGNAL_STATUS + signal);
        let runs = matches!(self.guest, GuestState::Pet(..));
        for id in self.tasks.ids() {
            let is_sandbox = self
                .tasks
                .task(&id.container)
                .is_ok_and(|task| task.is_sandbox);
            // A machine that runs tells its end itself.
            if is_sandbox || !runs {
                self.apply(&id, ProcessEvent::Ended(exit));
            }
            if boot_given_up {
                self.settle_without_boot(&id, exit);
            }
        }
    }

    /// Of a process that came with a boot which was given up nothing more is heard: its start has
    /// failed, and of its creation nothing is left.
    fn settle_without_boot(&mut self, id: &ProcessId, exit: Exit) {
        self.apply(id, ProcessEvent::StartFailed(exit));
        let process = self.tasks.process(id);
        if process.is_ok_and(|process| matches!(process.state, ProcessState::Creating { .. })) {
            self.tasks.0.remove(&id.container);
        }
    }

    pub(super) fn delete(&mut self, id: ProcessId, reply: Reply<Deleted>) {
        let asked = self.tasks.process(&id).and_then(|process| {
            process.apply(&id, ProcessEvent::DeleteAsked)?;
            Ok(std::mem::take(&mut process.streams))
        });
        let streams = match asked {
            Ok(streams) => streams,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let mut undo = Vec::new();
        if id.is_init()
            && let Ok(task) = self.tasks.task(&id.container)
        {
            undo = std::mem::take(&mut task.undo);
        }
        let hands = match &self.guest {
            GuestState::Up { hands, .. } => Some(hands.clone()),
            GuestState::Ended { hands, .. } => hands.clone(),
            GuestState::None | GuestState::Booting(_) | GuestState::Pet(..) => None,
        };
        if self.is_prepared_pet(&id) {
            self.prepared = None;
        }
        let remains = work::Remains {
            process: id,
            streams,
            undo,
            host: Arc::clone(&self.settings.tools.host),
            hands,
            link: self.link().ok(),
        };
        tokio::spawn(work::clean(remains, reply, self.outbox.clone()));
    }

    /// What was left of a process is gone: so is the process.
    pub(super) fn cleaned(&mut self, id: &ProcessId, reply: Reply<Deleted>) {
        let exit = self.tasks.process(id).map(|process| process.state.exit());
        let pid = self.tasks.pid(&id.container);
        if id.is_init() {
            self.tasks.0.remove(&id.container);
            self.adjust_oom_score();
            self.adjust_cpus();
            self.forget_machine();
        } else if let Ok(task) = self.tasks.task(&id.container) {
            task.execs.remove(&id.exec);
        }
        let deleted = exit.map(|exit| Deleted {
            exit: exit.unwrap_or_else(|| Self::exit_now(0)),
        });
        if let Ok(deleted) = &deleted {
            self.settings.publisher.publish(&Event::Delete(TaskDelete {
                container_id: id.container.clone(),
                pid,
                exit_status: deleted.exit.status,
                exited_at: Some(timestamp(deleted.exit.at)),
                id: id.exec.clone(),
            }));
        }
        let _ = reply.send(deleted);
    }

    pub(super) fn frozen(&mut self, container: &str, frozen: bool) {
        let Ok(task) = self.tasks.task(container) else {
            return;
        };
        task.paused = frozen;
        let container_id = container.to_owned();
        self.settings.publisher.publish(&if frozen {
            Event::Paused(TaskPaused { container_id })
        } else {
            Event::Resumed(TaskResumed { container_id })
        });
    }

    /// The pod is over: its guest, too, and containerd knows all.
    pub(super) async fn end(mut self) {
        let running = match std::mem::replace(&mut self.guest, GuestState::None) {
            GuestState::Up { hands, ended } => Some((hands.machine, ended)),
            GuestState::Pet(pet, ended) => Some((pet.machine, ended)),
            GuestState::None | GuestState::Booting(_) | GuestState::Ended { .. } => None,
        };
        if let Some((machine, mut ended)) = running {
            machine.stop();
            let _ = tokio::time::timeout(FLUSH, ended.wait_for(Option::is_some)).await;
        }
        self.release_network();
        self.settings.publisher.flush(FLUSH).await;
    }
}
