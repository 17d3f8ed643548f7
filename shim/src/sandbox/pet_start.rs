//! Prepares and starts a machine that has a disk of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use podvisor_vmm::EndReason;
use tokio::sync::{mpsc, watch};

use super::create::{ContainerPlan, root_folder};
use super::error::{TaskError, chain};
use super::pet::{PetNews, Started};
use super::pet_mounts::Mounts;
use super::pet_network::{self, Connected};
use super::pet_plan::{PetPlan, complete};
use super::plan::PodPlan;
use super::request::Reply;
use super::work::{self, Message, Outbox};
use crate::addresses;
use crate::guest::boot::{BootError, BootTools};
use crate::guest::pet::BootStage;
use crate::guest::{Launched, Machine, MachinePlan};
use crate::host::{HostOps, NetworkRequest};
use crate::io::{ConsoleEnds, Stdio, Transcript};
use crate::machine::disks::{DiskSet, OpenDisks};
use crate::pod::network::PodNetwork;
use crate::pod::resources::Share;

/// A guest, and the way to it, that a machine takes the place of.
pub(super) struct Replaced {
    pub machine: Option<Arc<dyn Machine>>,
    pub network: Option<PathBuf>,
}

/// A machine that waits for its start.
pub(super) struct Prepared {
    /// The container that it is.
    pub container: String,
    /// Where its root file system is mounted.
    pub root: PathBuf,
    /// The pod's network.
    pub network: PodNetwork,
    /// What it is given of the pod.
    pub share: Share,
    plan: PetPlan,
    stdio: Stdio,
}

/// Finds a container's disks.
///
/// # Errors
/// [`TaskError`]; nothing of the container is left.
pub(super) async fn prepare(
    pod: &PodPlan,
    plan: ContainerPlan,
    replaced: Replaced,
    tools: &BootTools,
) -> Result<Prepared, TaskError> {
    release(replaced, &tools.host).await?;
    let (root, mounted) = root_folder(&tools.host, &plan).await?;
    let (pod, bundle, at) = (pod.clone(), plan.bundle, root.clone());
    let host = Arc::clone(&tools.host);
    let found = tokio::task::spawn_blocking(move || PetPlan::of(&pod, &bundle, &at, &*host));
    let planned = match found.await {
        Ok(Ok(planned)) => planned,
        failed => {
            if mounted {
                let (host, root) = (Arc::clone(&tools.host), root);
                let _ = tokio::task::spawn_blocking(move || host.unmount(&root)).await;
            }
            return Err(failed.map_or_else(TaskError::from, |failed| match failed {
                Err(error) => error,
                Ok(_) => TaskError::Gone,
            }));
        }
    };
    Ok(Prepared {
        container: plan.id,
        root,
        network: planned.network.clone(),
        share: planned.share.clone(),
        plan: planned,
        stdio: plan.stdio,
    })
}

async fn release(replaced: Replaced, host: &Arc<dyn HostOps>) -> Result<(), TaskError> {
    let host = Arc::clone(host);
    let released = tokio::task::spawn_blocking(move || {
        if let Some(machine) = replaced.machine {
            machine.stop();
        }
        match replaced.network {
            Some(namespace) => host.release_network(&NetworkRequest { namespace }),
            None => Ok(()),
        }
    });
    Ok(released.await??)
}

/// Starts a machine and sends how that went; `reply` goes with it, unless a volume is to be filled
/// first: that takes longer than anybody waits.
pub(super) async fn start(
    prepared: Box<Prepared>,
    tools: BootTools,
    reply: Reply<()>,
    epoch: u64,
    out: Outbox,
) {
    let container = prepared.container.clone();
    let mut reply = Some(reply);
    let result = run(*prepared, &tools, &mut reply, epoch, &out).await;
    let _ = out.send(Message::PetStarted {
        epoch,
        container,
        result: Box::new(result),
        reply,
    });
}

async fn run(
    prepared: Prepared,
    tools: &BootTools,
    reply: &mut Option<Reply<()>>,
    epoch: u64,
    out: &Outbox,
) -> Result<Started, TaskError> {
    let Prepared {
        container,
        plan,
        stdio,
        ..
    } = prepared;
    let mut ends = ConsoleEnds::open(&stdio)?;
    for note in &plan.notes {
        tracing::info!(note, "of the machine");
        ends.say(note).await;
    }
    if plan.disks.is_to_be_filled()
        && let Some(reply) = reply.take()
    {
        let _ = out.send(Message::PetDelayed {
            epoch,
            container,
            reply,
        });
    }
    match launch(plan, tools, ends, epoch, out).await {
        Ok(started) => Ok(started),
        Err((error, ends)) => {
            if let Some(mut ends) = ends {
                ends.say(&chain(&error)).await;
            }
            Err(error)
        }
    }
}

/// Launches the machine and has it boot. With an error come the console's ends, when the machine
/// has not got them.
async fn launch(
    plan: PetPlan,
    tools: &BootTools,
    mut ends: ConsoleEnds,
    epoch: u64,
    out: &Outbox,
) -> Result<Started, (TaskError, Option<ConsoleEnds>)> {
    let PetPlan {
        disks,
        network,
        cards: wanted,
        stage,
        machine,
        volumes,
        seed,
        identity,
        ..
    } = plan;
    let (room, binding) = (machine.room, machine.binding.clone());
    let (transcript, lines) = Transcript::new();
    let launched = async {
        let mut opened = open(disks, &mut ends).await?;
        for disk in &mut opened.disks {
            disk.on_failure(transcript.listener());
        }
        let connected = pet_network::connect(&network, wanted, &identity, &seed, tools).await?;
        let Connected { cards, told, links } = connected;
        let launcher = Arc::clone(&tools.launcher);
        let plan = move || -> Result<Launched, TaskError> {
            let machine = MachinePlan { cards, ..machine };
            let machine = complete(machine, opened, seed, &identity, told)?;
            Ok(launcher.launch(machine).map_err(BootError::from)?)
        };
        Ok((tokio::task::spawn_blocking(plan).await??, links))
    };
    let (launched, links) = match launched.await {
        Ok(launched) => launched,
        Err(error) => return Err((error, Some(ends))),
    };
    let Launched {
        machine,
        ended,
        restarts,
    } = launched;
    tools.timeline.done("vm started");
    let streams = ends.connect(machine.console(), lines);
    let booted = stage.run(&*machine, ended.clone()).await;
    tools.timeline.machine(&machine.timeline());
    let booted = match booted {
        Ok(booted) => booted,
        Err(error) => {
            let error = TaskError::from(error);
            machine.stop();
            transcript.say(chain(&error));
            drop(transcript);
            streams.drain(work::DRAIN).await;
            return Err((error, None));
        }
    };
    tools.timeline.done("kernel started");
    tracing::info!(
        volume = booted.volume,
        entry = booted.entry_title,
        kernel = booted.kernel,
        release = booted.kernel_release,
        "the machine boots"
    );
    tokio::spawn(work::await_end(ended.clone(), epoch, out.clone()));
    let life = Life {
        machine: Arc::clone(&machine),
        ended: ended.clone(),
        restarts,
        stage,
        mounts: Mounts::new(volumes),
        epoch,
        out: out.clone(),
    };
    Ok(Started {
        machine,
        room,
        binding,
        ended,
        streams,
        transcript,
        life: tokio::spawn(addresses::serve_during(life.follow(), links)).abort_handle(),
    })
}

/// Opens the disks; fills an empty volume first and tells how far that is.
async fn open(disks: DiskSet, ends: &mut ConsoleEnds) -> Result<OpenDisks, TaskError> {
    if disks.is_to_be_filled() {
        ends.say("filling the volume from the image's disk").await;
    }
    let (told, mut progress) = mpsc::unbounded_channel();
    let cancelled = Cancel::default();
    let flag = Arc::clone(&cancelled.0);
    let filling = tokio::task::spawn_blocking(move || disks.open(&told, &flag));
    while let Some(percent) = progress.recv().await {
        ends.say(&format!("filled {percent} %")).await;
    }
    Ok(filling.await??)
}

/// Set when whoever waits is gone.
#[derive(Default)]
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Follows a machine from its first boot to its end.
struct Life {
    machine: Arc<dyn Machine>,
    ended: watch::Receiver<Option<EndReason>>,
    restarts: watch::Receiver<u64>,
    stage: BootStage,
    mounts: Mounts,
    epoch: u64,
    out: Outbox,
}

impl Life {
    async fn follow(mut self) {
        loop {
            let rebooted = tokio::select! {
                rebooted = self.restarts.changed() => rebooted.is_ok(),
                agent = self.stage.agent(&*self.machine) => {
                    match agent {
                        Ok(agent) => {
                            // Before anybody's command runs in it.
                            let _followers = self.mounts.mount(&agent).await;
                            self.tell(PetNews::Agent(agent.clone()));
                            let followed = work::pass_on_events(&agent, &self.out);
                            tokio::select! {
                                rebooted = self.restarts.changed() => {
                                    self.tell(PetNews::AgentLost);
                                    rebooted.is_ok()
                                }
                                () = followed => {
                                    self.tell(PetNews::AgentLost);
                                    continue;
                                }
                            }
                        }
                        Err(error) => {
                            tracing::debug!(error = chain(&error), "the machine's agent");
                            tokio::time::sleep(work::AGENT_PAUSE).await;
                            continue;
                        }
                    }
                }
            };
            if !rebooted {
                return;
            }
            tracing::info!("the machine reboots");
            self.restarts.mark_unchanged();
            if let Err(error) = self.stage.run(&*self.machine, self.ended.clone()).await {
                tracing::error!(error = chain(&error), "the machine does not boot again");
                self.tell(PetNews::Unbootable(chain(&error)));
                self.machine.stop();
                return;
            }
        }
    }

    fn tell(&self, news: PetNews) {
        let epoch = self.epoch;
        let _ = self.out.send(Message::PetNews { epoch, news });
    }
}
