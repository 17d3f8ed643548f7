//! From a plan to a guest that knows its pod. What can be done while the guest's kernel boots is
//! done then.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use podvisor_proto::agent::v1::{AgentClient, ConfigureSandboxRequest, NetworkConfig, Ready};
use podvisor_proto::ttrpc::Status;
use podvisor_vmm::EndReason;
use thiserror::Error;
use tokio::sync::watch;

use super::card::Card;
use super::client::{self, AgentError};
use super::{Activity, LaunchError, Launched, Launcher, Machine, MachinePlan};
use crate::host::{CardRequest, HostError, HostOps, Nic, TapsRequest, trim_heap};
use crate::pod::binding::Binding;
use crate::pod::network::PodNetwork;
use crate::pod::room::Room;
use crate::timeline::Timeline;

/// Entropy given to a guest, in bytes: what its pool's key is made of.
const ENTROPY_LEN: usize = 32;
/// Lines of console that an error shows.
const CONSOLE_LINES: usize = 12;
/// Characters of each such line.
const CONSOLE_LINE_LEN: usize = 200;

/// What a boot works with.
#[derive(Clone)]
pub struct BootTools {
    /// Privileged work.
    pub host: Arc<dyn HostOps>,
    /// Starts the machine.
    pub launcher: Arc<dyn Launcher>,
    /// Where phases are noted.
    pub timeline: Timeline,
}

/// What is to be booted.
pub struct BootPlan {
    /// The machine; its cards come from the network.
    pub machine: MachinePlan,
    /// The pod's network.
    pub network: PodNetwork,
    /// What the guest is told; network, clock and entropy are filled in.
    pub sandbox: ConfigureSandboxRequest,
    /// How long the guest may take until its agent answers.
    pub boot_timeout: Duration,
    /// How long the agent may take for a call.
    pub agent_timeout: Duration,
}

/// A booted guest that knows its pod.
pub struct Guest {
    /// The machine.
    pub machine: Arc<dyn Machine>,
    /// Why it ended, once it has.
    pub ended: watch::Receiver<Option<EndReason>>,
    /// The agent's API.
    pub agent: AgentClient,
    /// The machine's size.
    pub room: Room,
    /// How it is bound to its host.
    pub binding: Binding,
}

/// The last lines of a console, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleLines(String);

/// What a guest does whose agent does not answer: whether it ended in a loop, sleeps, or got as far as its
/// vsock driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    before: Activity,
    after: Activity,
}

/// Why a pod has no guest.
#[derive(Debug, Error)]
pub enum BootError {
    /// Work on the host failed.
    #[error("the pod's network")]
    Host(#[from] HostError),
    /// The machine does not start.
    #[error("the pod's VM")]
    Launch(#[from] LaunchError),
    /// The guest is silent.
    #[error("the guest's agent did not answer within {} s of the VM's start; {silence}; {console}", .timeout.as_secs())]
    Timeout {
        /// How long was waited.
        timeout: Duration,
        /// What it did instead.
        silence: Silence,
        /// What the guest said.
        console: ConsoleLines,
    },
    /// The guest ended.
    #[error("the guest ended while it booted: {reason}; {console}")]
    Ended {
        /// Why.
        reason: EndReason,
        /// What the guest said.
        console: ConsoleLines,
    },
    /// The agent cannot be talked to.
    #[error("the guest's agent; {console}")]
    Agent {
        /// Why.
        source: AgentError,
        /// What the guest said.
        console: ConsoleLines,
    },
    /// Nothing on the machine's disks can be booted.
    #[error("the machine does not boot: {}", .0.message())]
    Stage(Status),
    /// The agent refuses the pod.
    #[error("the guest's agent cannot set up the pod")]
    Configure(#[source] Status),
    /// A worker thread of this process failed.
    #[error("a worker thread failed")]
    Worker(#[from] tokio::task::JoinError),
}

impl ConsoleLines {
    /// The last lines of what `machine`'s guest wrote.
    pub fn of(machine: &dyn Machine) -> Self {
        let tail = machine.console_tail();
        let text = String::from_utf8_lossy(&tail);
        let lines: Vec<String> = text
            .lines()
            .rev()
            .filter(|line| !line.trim().is_empty())
            .take(CONSOLE_LINES)
            .map(|line| {
                line.chars()
                    .filter(|c| !c.is_control())
                    .take(CONSOLE_LINE_LEN)
                    .collect()
            })
            .collect();
        Self(lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
    }
}

impl Silence {
    /// Looks at `machine` for a second.
    async fn of(machine: &dyn Machine) -> Self {
        let before = machine.activity();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let after = machine.activity();
        Self { before, after }
    }
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its vsock driver sent {} packets", self.after.packets)?;
        let (Some(before), Some(after)) = (self.before.exits, self.after.exits) else {
            return Ok(());
        };
        let latest = after.saturating_sub(before);
        write!(
            f,
            ", its processors left guest mode {after} times, {latest} of them in the last second"
        )
    }
}

impl fmt::Display for ConsoleLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            f.write_str("its console is empty")
        } else {
            write!(f, "its console ends with:\n{}", self.0)
        }
    }
}

/// Boots a guest and tells it its pod. Dropping the future ends the machine.
///
/// # Errors
/// [`BootError`]; the machine is gone then, and so are its taps.
pub async fn boot(mut plan: BootPlan, tools: &BootTools) -> Result<Guest, BootError> {
    let nics = open_taps(&plan.network, Vec::new(), tools).await?;
    plan.machine.cards = nics.into_iter().map(Card::from).collect();
    tools.timeline.done("taps");
    let launcher = Arc::clone(&tools.launcher);
    let machine = plan.machine;
    let (room, binding) = (machine.room, machine.binding.clone());
    let Launched { machine, ended, .. } =
        tokio::task::spawn_blocking(move || launcher.launch(machine)).await??;
    tools.timeline.done("vm started");
    let (network, ready) = tokio::join!(
        redirect(&plan.network, Vec::new(), tools),
        ready(&*machine, ended.clone(), plan.boot_timeout)
    );
    // A guest that does not answer says more than a network that fails.
    let ready = ready?;
    tools.timeline.machine(&machine.timeline());
    tools.timeline.done("agent ready");
    tracing::info!(
        kernel = ready.kernel_release,
        agent_started_ms = ready.agent_started_ns / 1_000_000,
        "the guest is up"
    );
    let failed = |source| BootError::Agent {
        source,
        console: ConsoleLines::of(&*machine),
    };
    let agent = client::connect(&*machine, plan.agent_timeout)
        .await
        .map_err(failed)?;
    let mut request = plan.sandbox;
    request.network = Some(network?);
    request.wall_clock_ns = wall_clock_ns();
    request.entropy = entropy();
    agent
        .configure_sandbox(request)
        .await
        .map_err(BootError::Configure)?;
    tools.timeline.done("pod configured");
    // What the start took and nobody needs again: the kernel's file, netlink's answers.
    trim_heap();
    Ok(Guest {
        machine,
        ended,
        agent,
        room,
        binding,
    })
}

/// Makes a tap beside every interface of the pod's network; `cards` are what is asked of some.
///
/// # Errors
/// [`BootError::Host`].
pub async fn open_taps(
    network: &PodNetwork,
    cards: Vec<CardRequest>,
    tools: &BootTools,
) -> Result<Vec<Nic>, BootError> {
    let PodNetwork::Namespace(namespace) = network else {
        return Ok(Vec::new());
    };
    let (host, request) = (
        Arc::clone(&tools.host),
        TapsRequest {
            namespace: namespace.clone(),
            cards,
        },
    );
    Ok(tokio::task::spawn_blocking(move || host.open_taps(&request)).await??)
}

/// Redirects the pod's traffic to its taps, and tells its addresses and routes; `cards` are what is
/// asked of some.
///
/// # Errors
/// [`BootError::Host`].
pub async fn redirect(
    network: &PodNetwork,
    cards: Vec<CardRequest>,
    tools: &BootTools,
) -> Result<NetworkConfig, BootError> {
    let PodNetwork::Namespace(namespace) = network else {
        return Ok(NetworkConfig::default());
    };
    let (host, request) = (
        Arc::clone(&tools.host),
        TapsRequest {
            namespace: namespace.clone(),
            cards,
        },
    );
    let config = tokio::task::spawn_blocking(move || host.redirect(&request)).await??;
    tools.timeline.done("network redirected");
    Ok(config)
}

/// Waits for the agent, for the machine's end or for time to run out.
///
/// # Errors
/// [`BootError`] for what came instead.
pub async fn ready(
    machine: &dyn Machine,
    mut ended: watch::Receiver<Option<EndReason>>,
    timeout: Duration,
) -> Result<Ready, BootError> {
    let console = || ConsoleLines::of(machine);
    let answer = async {
        tokio::select! {
            // An ended machine also breaks the connection: the end says more.
            biased;
            Ok(reason) = ended.wait_for(Option::is_some) => {
                let reason = reason.clone().unwrap_or(EndReason::Killed);
                Err(BootError::Ended { reason, console: console() })
            }
            ready = client::wait_ready(machine) => {
                ready.map_err(|source| BootError::Agent { source, console: console() })
            }
        }
    };
    match tokio::time::timeout(timeout, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(BootError::Timeout {
            timeout,
            silence: Silence::of(machine).await,
            console: console(),
        }),
    }
}

/// Nanoseconds since the epoch.
fn wall_clock_ns() -> i64 {
    let elapsed = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
}

/// Random bytes of the host; none when it has none to give, for the guest has a device as well.
fn entropy() -> Vec<u8> {
    use std::io::Read;
    let mut bytes = vec![0; ENTROPY_LEN];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    if read.is_ok() { bytes } else { Vec::new() }
}
