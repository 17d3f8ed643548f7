//! Boots a machine that has a disk of its own: our kernel and agent start first and hand over to
//! what the agent finds on the disk. They do so again whenever the machine reboots.

use std::time::Duration;

use podvisor_proto::agent::v1::{
    AgentClient, BootMachineRequest, BootMachineResponse, StartMachineRequest,
};
use podvisor_vmm::EndReason;
use tokio::sync::watch;

use super::Machine;
use super::boot::{BootError, ConsoleLines, ready};
use super::client::{self, AgentError};

/// How a machine is brought from our kernel to its own.
#[derive(Clone, Debug)]
pub struct BootStage {
    /// Where to look for a kernel.
    pub request: BootMachineRequest,
    /// How long our kernel and agent may take.
    pub boot_timeout: Duration,
    /// How long the agent may take for a call.
    pub agent_timeout: Duration,
}

impl BootStage {
    /// Waits for our agent in `machine`, has it look for the machine's own kernel and start it.
    /// Yields what is booted.
    ///
    /// # Errors
    /// [`BootError`]; the machine stays as it is.
    pub async fn run(
        &self,
        machine: &dyn Machine,
        ended: watch::Receiver<Option<EndReason>>,
    ) -> Result<BootMachineResponse, BootError> {
        ready(machine, ended.clone(), self.boot_timeout).await?;
        let agent = self.connect(machine).await?;
        let found = agent.boot_machine(self.request.clone()).await;
        let found = found.map_err(BootError::Stage)?;
        // The answer may be lost with the kernel that would have sent it.
        let started = agent.start_machine(StartMachineRequest::default()).await;
        if let Err(status) = started {
            tracing::debug!(%status, "the boot stage's last answer");
        }
        Ok(found)
    }

    /// Waits until an agent of ours says that it runs in the machine's own system.
    ///
    /// # Errors
    /// [`BootError::Agent`].
    pub async fn agent(&self, machine: &dyn Machine) -> Result<AgentClient, BootError> {
        client::wait_ready(machine)
            .await
            .map_err(|source| failed(machine, source))?;
        self.connect(machine).await
    }

    async fn connect(&self, machine: &dyn Machine) -> Result<AgentClient, BootError> {
        client::connect(machine, self.agent_timeout)
            .await
            .map_err(|source| failed(machine, source))
    }
}

fn failed(machine: &dyn Machine, source: AgentError) -> BootError {
    BootError::Agent {
        source,
        console: ConsoleLines::of(machine),
    }
}
