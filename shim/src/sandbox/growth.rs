//! Makes a machine larger while it runs, and asks it to give back.

use std::sync::Arc;
use std::time::Duration;

use podvisor_proto::agent::v1::{AgentClient, UseHardwareRequest};
use podvisor_proto::ttrpc::Status;
use podvisor_vmm::{EndReason, MemoryPlugError, VcpuPlugError};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::error::chain;
use crate::guest::Machine;
use crate::pod::sizing::{Size, mib};

/// How long a guest may go without taking more of the memory that it was offered, and keep processors that it
/// was asked for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at it.
const PAUSE: Duration = Duration::from_millis(5);

/// Why a machine did not grow. It is to be what it was before.
#[derive(Debug, Error)]
pub enum GrowthError {
    /// The guest does not take the memory.
    #[error(
        "the guest has taken {} of {} of memory, and no more in {} s: what it was offered is withdrawn",
        mib(*.present), mib(*.requested), PATIENCE.as_secs()
    )]
    Memory {
        /// What it has.
        present: u64,
        /// What it was to have.
        requested: u64,
    },
    /// It has been asked to let go of processors and keeps them.
    #[error("the guest does not let go of {0} processors that it was asked for before")]
    Leaving(u8),
    /// Memory cannot be had.
    #[error("cannot give the VM more memory")]
    PlugMemory(#[from] MemoryPlugError),
    /// Processors cannot be had.
    #[error("cannot give the VM more processors")]
    PlugVcpus(#[from] VcpuPlugError),
    /// The guest does not use what is there.
    #[error("the guest does not use what it was given: {}", .0.message())]
    Agent(Status),
    /// It is no more.
    #[error("the VM has ended meanwhile")]
    Ended,
    /// A worker of this process failed.
    #[error("a worker thread failed")]
    Worker(#[from] tokio::task::JoinError),
}

/// A machine that can grow, and who is in it.
#[derive(Clone)]
pub(super) struct Grower {
    /// The machine.
    pub machine: Arc<dyn Machine>,
    /// Our agent in its guest, if there is one.
    pub agent: Option<AgentClient>,
    /// Why it ended, once it has.
    pub ended: watch::Receiver<Option<EndReason>>,
}

impl Grower {
    /// Makes the machine as large as `to`, from what it was asked to be before. It is that again when this
    /// fails.
    ///
    /// # Errors
    /// [`GrowthError`].
    pub async fn grow(&mut self, from: Size, to: Size) -> Result<(), GrowthError> {
        if from == to {
            return Ok(());
        }
        let mut ended = self.ended.clone();
        let grown = tokio::select! {
            biased;
            _ = ended.wait_for(Option::is_some) => return Err(GrowthError::Ended),
            grown = self.plug(from, to) => grown,
        };
        if grown.is_err() {
            self.give_back(to, from);
        }
        grown
    }

    /// Asks the guest to let go of what it has beyond `to`. It does so in its own time.
    pub fn give_back(&self, from: Size, to: Size) {
        let machine = &self.machine;
        if to.memory < from.memory
            && let Err(error) = machine.set_memory(to.memory)
        {
            tracing::warn!(error = chain(&error), "the guest keeps its memory");
        }
        if to.vcpus < from.vcpus
            && let Err(error) = machine.set_vcpus(to.vcpus)
        {
            tracing::warn!(error = chain(&error), "the guest keeps its processors");
        }
    }

    async fn plug(&self, from: Size, to: Size) -> Result<(), GrowthError> {
        if to.memory > from.memory {
            self.machine.set_memory(to.memory)?;
            self.await_memory().await?;
        }
        if to.vcpus > from.vcpus {
            self.await_leaving().await?;
            let (machine, vcpus) = (Arc::clone(&self.machine), to.vcpus);
            tokio::task::spawn_blocking(move || machine.set_vcpus(vcpus)).await??;
        }
        let Some(agent) = &self.agent else {
            tracing::info!("no agent tells whether the machine uses what it was given");
            return Ok(());
        };
        let memory = self.machine.memory().map(|memory| memory.requested);
        let request = UseHardwareRequest {
            processors: to.vcpus.get().into(),
            memory_bytes: memory.unwrap_or_else(|| to.memory.bytes()),
        };
        let used = agent.use_hardware(request).await;
        used.map(drop).map_err(GrowthError::Agent)
    }

    /// Waits until the guest has all the memory that it was offered.
    async fn await_memory(&self) -> Result<(), GrowthError> {
        let (mut most, mut deadline) = (0, Instant::now() + PATIENCE);
        while let Some(memory) = self.machine.memory() {
            let (present, requested) = (memory.present, memory.requested);
            if present >= requested {
                return Ok(());
            }
            if present > most {
                (most, deadline) = (present, Instant::now() + PATIENCE);
            } else if Instant::now() >= deadline {
                return Err(GrowthError::Memory { present, requested });
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Waits until no processor is about to leave: one that is asked to cannot be made to stay.
    async fn await_leaving(&self) -> Result<(), GrowthError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let leaving = self.machine.vcpus().leaving;
            if leaving == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(GrowthError::Leaving(leaving));
            }
            sleep(PAUSE).await;
        }
    }
}
