//! Changes of what a pod's containers may use, one after the other: before the guest gives a container more the
//! machine grows, and after it has taken something away the machine is asked to give back.

use std::collections::VecDeque;

use oci_spec::runtime::LinuxResources;
use podvisor_proto::agent::v1::UpdateContainerRequest;
use podvisor_vmm::MemoryBacking;

use super::actor::{Actor, GuestState};
use super::create::ContainerPlan;
use super::error::TaskError;
use super::growth::Grower;
use super::request::{ProcessId, Reply};
use super::undo::Hands;
use super::work::{self, Message};
use crate::host::cgroup;
use crate::pod::binding::Binding;
use crate::pod::resources::{self, GuestResources, Share};
use crate::pod::room::{Demand, Room};
use crate::pod::sizing::Size;

/// A change that waits, or is under way.
pub(super) struct Change {
    container: String,
    what: What,
    reply: Reply<()>,
}

enum What {
    /// The container's limits.
    Limits(Box<LinuxResources>),
    /// A container that comes.
    Container(Box<ContainerPlan>),
}

/// All changes of a pod.
#[derive(Default)]
pub(super) struct Changes {
    is_busy: bool,
    waiting: VecDeque<Change>,
}

/// What a change leads to.
pub(super) struct Changed {
    /// The machine's size.
    size: Size,
    /// What the container is given.
    share: Share,
}

/// How a change is made.
struct Step {
    grower: Grower,
    room: Room,
    /// What the machine is to be in the end.
    size: Size,
    share: Share,
    /// What the guest is told.
    update: Option<UpdateContainerRequest>,
}

impl Step {
    async fn run(mut self) -> Result<Changed, TaskError> {
        let before = self.room.now;
        let grown = before.max(self.size);
        self.grower.grow(before, grown).await?;
        if let (Some(update), Some(agent)) = (self.update, &self.grower.agent)
            && let Err(status) = agent.update_container(update).await
        {
            self.grower.give_back(grown, before);
            return Err(status.into());
        }
        self.grower.give_back(grown, self.size);
        Ok(Changed {
            size: self.size,
            share: self.share,
        })
    }
}

impl Actor {
    pub(super) fn update(&mut self, container: String, json: &[u8], reply: Reply<()>) {
        match resources::parse(json) {
            Ok(resources) => self.change(Change {
                container,
                what: What::Limits(Box::new(resources)),
                reply,
            }),
            Err(error) => drop(reply.send(Err(error.into()))),
        }
    }

    /// Makes a container in a guest that may have to grow for it.
    pub(super) fn make_room(&mut self, plan: Box<ContainerPlan>, reply: Reply<()>) {
        self.change(Change {
            container: plan.id.clone(),
            what: What::Container(plan),
            reply,
        });
    }

    fn change(&mut self, change: Change) {
        self.changes.waiting.push_back(change);
        self.next_change();
    }

    fn next_change(&mut self) {
        while !self.changes.is_busy {
            let Some(change) = self.changes.waiting.pop_front() else {
                return;
            };
            match self.plan_change(&change) {
                Ok(step) => {
                    self.changes.is_busy = true;
                    let (epoch, out) = (self.epoch, self.outbox.clone());
                    tokio::spawn(async move {
                        let result = step.run().await.map(Box::new);
                        let _ = out.send(Message::Changed {
                            epoch,
                            change,
                            result,
                        });
                    });
                }
                Err(error) => self.refuse_change(change, error),
            }
        }
    }

    fn plan_change(&mut self, change: &Change) -> Result<Step, TaskError> {
        let id = &change.container;
        let task = self.tasks.task(id)?;
        if task.is_sandbox {
            let why = "the pod itself cannot be changed while it runs";
            return Err(TaskError::Invalid(why.to_owned()));
        }
        if task.init.state.exit().is_some() {
            let process = ProcessId::init(id).to_string();
            return Err(TaskError::NotRunning(process));
        }
        let before = task.share.clone();
        let (grower, room, binding) = self.grower()?;
        let step = |size, share, update| Step {
            grower,
            room,
            size,
            share,
            update,
        };
        match &change.what {
            What::Container(plan) => {
                let share = plan.bundle.share()?;
                let size = room.now.max(self.size_for(id, room, &share, false)?);
                binding.check(self.tasks.shares(id, &share), size.vcpus)?;
                Ok(step(size, share, None))
            }
            What::Limits(resources) => {
                let share = Share::of(resources)?;
                let is_raised = share.has_more_cpu_than(&before);
                let size = self.size_for(id, room, &share, is_raised)?;
                binding.check(self.tasks.shares(id, &share), size.vcpus)?;
                let resources = LinuxResources::clone(resources);
                let fitted = GuestResources::of_update(resources, size, &before)?;
                let update = UpdateContainerRequest {
                    container_id: id.clone(),
                    resources_json: fitted.to_json(),
                };
                // What lies within a machine is its own.
                let update = (!room.is_machine).then_some(update);
                Ok(step(size, fitted.share, update))
            }
        }
    }

    /// The size of a machine in which `container` has `share`, if its pod's group allows it.
    fn size_for(
        &self,
        container: &str,
        room: Room,
        share: &Share,
        is_raised: bool,
    ) -> Result<Size, TaskError> {
        let demand = Demand::of(self.tasks.shares(container, share));
        let size = room.size_for(demand, is_raised)?;
        let placement = self.settings.placement.as_ref().ok();
        let leaf = placement.and_then(|placement| placement.cgroup.as_ref());
        if let Some(leaf) = leaf.filter(|_| size.memory > room.now.memory) {
            // What grows is never in pages of a pool.
            size.check_cgroup(MemoryBacking::Normal, cgroup::memory_max(leaf))?;
        }
        Ok(size)
    }

    /// The machine that runs, its room and how it is bound.
    fn grower(&self) -> Result<(Grower, Room, Binding), TaskError> {
        if let GuestState::Pet(pet, ended) = &self.guest {
            let grower = Grower {
                machine: pet.machine.clone(),
                agent: pet.agent.clone(),
                ended: ended.clone(),
            };
            return Ok((grower, pet.room, pet.binding.clone()));
        }
        let hands = self.hands()?;
        let GuestState::Up { ended, .. } = &self.guest else {
            return Err(TaskError::Gone);
        };
        let grower = Grower {
            machine: hands.machine,
            agent: Some(hands.agent),
            ended: ended.clone(),
        };
        Ok((grower, hands.room, hands.binding))
    }

    /// A change was made, or not.
    pub(super) fn changed(
        &mut self,
        epoch: u64,
        change: Change,
        result: Result<Box<Changed>, TaskError>,
    ) {
        self.changes.is_busy = false;
        match result {
            Ok(changed) => self.settle_change(epoch, change, *changed),
            Err(error) => self.refuse_change(change, error),
        }
        self.next_change();
    }

    fn settle_change(&mut self, epoch: u64, change: Change, changed: Changed) {
        let room = match &mut self.guest {
            GuestState::Up { hands, .. } => Some(&mut hands.room),
            GuestState::Pet(pet, _) => Some(&mut pet.room),
            GuestState::None | GuestState::Booting(_) | GuestState::Ended { .. } => None,
        };
        if let Some(room) = room.filter(|_| epoch == self.epoch) {
            room.now = changed.size;
        }
        if let Ok(task) = self.tasks.task(&change.container) {
            task.share = changed.share;
        }
        let Change {
            container,
            what,
            reply,
        } = change;
        match what {
            What::Limits(_) => {
                self.adjust_cpus();
                let _ = reply.send(self.pin());
            }
            What::Container(plan) => match self.place() {
                Ok(hands) => {
                    let out = self.outbox.clone();
                    tokio::spawn(work::container(hands, plan, reply, out));
                }
                Err(error) => self.settle_creation(&container, Err(error), reply),
            },
        }
    }

    /// Brings the machine to the CPUs that its containers name, one of which is about to come.
    fn place(&mut self) -> Result<Hands, TaskError> {
        self.adjust_cpus();
        self.pin()?;
        self.hands()
    }

    /// Lets the machine's processors run where they are to, among the CPUs that its containers name.
    fn pin(&self) -> Result<(), TaskError> {
        let Ok((grower, _, binding)) = self.grower() else {
            return Ok(());
        };
        match self.tasks.host_cpus() {
            Some(cpus) if binding.is_bound() => Ok(grower.machine.pin(&binding.vcpus(&cpus))?),
            _ => Ok(()),
        }
    }

    fn refuse_change(&mut self, change: Change, error: TaskError) {
        let Change {
            container,
            what,
            reply,
        } = change;
        match what {
            What::Limits(_) => drop(reply.send(Err(error))),
            What::Container(_) => self.settle_creation(&container, Err(error), reply),
        }
    }
}
