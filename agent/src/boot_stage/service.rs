//! The calls that a boot stage serves.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use podvisor_proto::agent::v1::*;
use podvisor_proto::ttrpc::Status;

use super::kernel_modules::KernelModules;
use super::{BootStageError, sources, start};
use crate::refuse::refuse;
use crate::{error_chain, log, sandbox};

/// Time for the answer to leave before the devices are reset.
const FAREWELL: Duration = Duration::from_millis(20);

/// Implements the API before a machine's own kernel.
pub struct BootService {
    state: Mutex<State>,
}

struct State {
    modules: KernelModules,
    is_loaded: bool,
}

impl BootService {
    /// A stage that has loaded nothing.
    ///
    /// # Errors
    ///
    /// [`BootStageError::Step`] when the initial image is not one of a boot stage.
    pub fn new() -> Result<Self, BootStageError> {
        let state = State {
            modules: KernelModules::new()?,
            is_loaded: false,
        };
        Ok(Self {
            state: Mutex::new(state),
        })
    }

    fn boot(&self, request: &BootMachineRequest) -> Result<BootMachineResponse, BootStageError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let response = sources::boot(request, &mut state.modules)?;
        state.is_loaded = true;
        tracing::info!(
            volume = response.volume,
            kernel = response.kernel,
            arguments = response.command_line,
            "booting \"{}\"",
            response.entry_title
        );
        Ok(response)
    }

    fn is_loaded(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_loaded
    }
}

impl From<BootStageError> for Status {
    fn from(error: BootStageError) -> Self {
        let message = error_chain(&error);
        match error {
            BootStageError::Step { .. } => Self::internal(message),
            BootStageError::Malformed(_) => Self::invalid_argument(message),
            BootStageError::Nothing(_) | BootStageError::NotLoaded => {
                Self::failed_precondition(message)
            }
        }
    }
}

impl Agent for BootService {
    async fn boot_machine(
        &self,
        request: BootMachineRequest,
    ) -> Result<BootMachineResponse, Status> {
        // Nothing else is asked of a boot stage meanwhile.
        Ok(self.boot(&request)?)
    }

    async fn start_machine(&self, _: StartMachineRequest) -> Result<StartMachineResponse, Status> {
        if !self.is_loaded() {
            return Err(BootStageError::NotLoaded.into());
        }
        tokio::spawn(async {
            tokio::time::sleep(FAREWELL).await;
            let error = start::jump();
            // The devices are gone: only the console can tell, and the panic that follows.
            log::last_words(&format!("cannot start the machine's kernel: {error}"));
            std::process::exit(1);
        });
        Ok(StartMachineResponse {})
    }

    async fn set_clock(&self, request: SetClockRequest) -> Result<SetClockResponse, Status> {
        sandbox::set_clock(request.wall_clock_ns)?;
        Ok(SetClockResponse {})
    }

    async fn sandbox_stats(&self, _: SandboxStatsRequest) -> Result<SandboxStatsResponse, Status> {
        let (memory_total_bytes, memory_available_bytes) = sandbox::memory_bytes();
        Ok(SandboxStatsResponse {
            metrics: Vec::new(),
            memory_total_bytes,
            memory_available_bytes,
        })
    }

    async fn next_events(&self, _: NextEventsRequest) -> Result<NextEventsResponse, Status> {
        // There are no processes that could end.
        std::future::pending().await
    }

    async fn shutdown(&self, _: ShutdownRequest) -> Result<ShutdownResponse, Status> {
        sandbox::shut_down();
        Ok(ShutdownResponse {})
    }

    refuse! { "this guest is about to boot a machine" =>
        configure_sandbox(ConfigureSandboxRequest) -> ConfigureSandboxResponse;
        configure_network(ConfigureNetworkRequest) -> ConfigureNetworkResponse;
        apply_volume(ApplyVolumeRequest) -> ApplyVolumeResponse;
        make_volume(MakeVolumeRequest) -> MakeVolumeResponse;
        find_disk(FindDiskRequest) -> FindDiskResponse;
        release_disk(ReleaseDiskRequest) -> ReleaseDiskResponse;
        remove_volume(RemoveVolumeRequest) -> RemoveVolumeResponse;
        mount_volumes(MountVolumesRequest) -> MountVolumesResponse;
        create_container(CreateContainerRequest) -> CreateContainerResponse;
        create_exec(CreateExecRequest) -> CreateExecResponse;
        start_process(StartProcessRequest) -> StartProcessResponse;
        signal_process(SignalProcessRequest) -> SignalProcessResponse;
        resize_terminal(ResizeTerminalRequest) -> ResizeTerminalResponse;
        delete_process(DeleteProcessRequest) -> DeleteProcessResponse;
        list_processes(ListProcessesRequest) -> ListProcessesResponse;
        update_container(UpdateContainerRequest) -> UpdateContainerResponse;
        use_hardware(UseHardwareRequest) -> UseHardwareResponse;
        pause_container(PauseContainerRequest) -> PauseContainerResponse;
        resume_container(ResumeContainerRequest) -> ResumeContainerResponse;
        container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
    }
}
