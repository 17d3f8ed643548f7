//! The calls that the agent serves in a machine.

use std::process::{Command, Stdio as Redirect};
use std::sync::Arc;

use podvisor_proto::agent::v1::*;
use podvisor_proto::ttrpc::Status;
use prost::Message as _;

use super::account::PATH;
use super::processes::Processes;
use super::{usage, volumes};
use crate::container::ProcessKey;
use crate::hardware;
use crate::refuse::refuse;
use crate::sandbox;

/// Implements the API in a machine. The container of any id is the machine.
pub struct MachineService {
    processes: Arc<Processes>,
}

impl MachineService {
    /// Serves `processes`.
    #[must_use]
    pub fn new(processes: Arc<Processes>) -> Self {
        Self { processes }
    }
}

fn key(container_id: String, exec_id: String) -> ProcessKey {
    ProcessKey {
        container_id,
        exec_id,
    }
}

impl Agent for MachineService {
    async fn create_exec(&self, request: CreateExecRequest) -> Result<CreateExecResponse, Status> {
        let key = key(request.container_id, request.exec_id);
        let stdio = request.stdio.unwrap_or_default();
        let streams = self.processes.create(&key, request.process_json, &stdio)?;
        Ok(CreateExecResponse {
            streams: Some(streams),
        })
    }

    async fn start_process(
        &self,
        request: StartProcessRequest,
    ) -> Result<StartProcessResponse, Status> {
        let key = key(request.container_id, request.exec_id);
        let pid = self.processes.start(&key).await?;
        Ok(StartProcessResponse { pid })
    }

    async fn signal_process(
        &self,
        request: SignalProcessRequest,
    ) -> Result<SignalProcessResponse, Status> {
        let key = key(request.container_id, request.exec_id);
        self.processes.signal(&key, request.signal, request.all)?;
        Ok(SignalProcessResponse {})
    }

    async fn resize_terminal(
        &self,
        request: ResizeTerminalRequest,
    ) -> Result<ResizeTerminalResponse, Status> {
        let key = key(request.container_id, request.exec_id);
        self.processes.resize(&key, request.rows, request.columns)?;
        Ok(ResizeTerminalResponse {})
    }

    async fn delete_process(
        &self,
        request: DeleteProcessRequest,
    ) -> Result<DeleteProcessResponse, Status> {
        self.processes
            .delete(&key(request.container_id, request.exec_id))
            .await?;
        Ok(DeleteProcessResponse {})
    }

    async fn list_processes(
        &self,
        _: ListProcessesRequest,
    ) -> Result<ListProcessesResponse, Status> {
        Ok(ListProcessesResponse {
            pids: usage::processes(),
        })
    }

    async fn container_stats(
        &self,
        _: ContainerStatsRequest,
    ) -> Result<ContainerStatsResponse, Status> {
        Ok(ContainerStatsResponse {
            metrics: usage::metrics().encode_to_vec(),
        })
    }

    async fn sandbox_stats(&self, _: SandboxStatsRequest) -> Result<SandboxStatsResponse, Status> {
        let (memory_total_bytes, memory_available_bytes) = sandbox::memory_bytes();
        Ok(SandboxStatsResponse {
            metrics: usage::metrics().encode_to_vec(),
            memory_total_bytes,
            memory_available_bytes,
        })
    }

    async fn set_clock(&self, request: SetClockRequest) -> Result<SetClockResponse, Status> {
        sandbox::set_clock(request.wall_clock_ns)?;
        Ok(SetClockResponse {})
    }

    async fn apply_volume(
        &self,
        request: ApplyVolumeRequest,
    ) -> Result<ApplyVolumeResponse, Status> {
        volumes::apply(&request)?;
        Ok(ApplyVolumeResponse {})
    }

    async fn make_volume(&self, request: MakeVolumeRequest) -> Result<MakeVolumeResponse, Status> {
        volumes::make(&request)?;
        Ok(MakeVolumeResponse {})
    }

    async fn remove_volume(
        &self,
        request: RemoveVolumeRequest,
    ) -> Result<RemoveVolumeResponse, Status> {
        crate::volumes::remove(&request.volume_id)?;
        Ok(RemoveVolumeResponse {})
    }

    async fn mount_volumes(
        &self,
        request: MountVolumesRequest,
    ) -> Result<MountVolumesResponse, Status> {
        let failures = volumes::mount_all(&request.mounts);
        Ok(MountVolumesResponse { failures })
    }

    async fn next_events(&self, request: NextEventsRequest) -> Result<NextEventsResponse, Status> {
        let events = self.processes.events.next(request.after).await;
        Ok(NextEventsResponse { events })
    }

    async fn use_hardware(
        &self,
        request: UseHardwareRequest,
    ) -> Result<UseHardwareResponse, Status> {
        hardware::take_into_use(request.processors, request.memory_bytes).await?;
        Ok(UseHardwareResponse {})
    }

    async fn shutdown(&self, _: ShutdownRequest) -> Result<ShutdownResponse, Status> {
        // The machine's own way, so that its services are stopped; its end is seen by the reaper.
        let started = Command::new("poweroff")
            .env("PATH", PATH)
            .stdin(Redirect::null())
            .spawn();
        match started {
            Ok(_) => Ok(ShutdownResponse {}),
            Err(error) => Err(Status::internal(format!("run poweroff: {error}"))),
        }
    }

    refuse! { "this pod is a machine" =>
        configure_sandbox(ConfigureSandboxRequest) -> ConfigureSandboxResponse;
        configure_network(ConfigureNetworkRequest) -> ConfigureNetworkResponse;
        find_disk(FindDiskRequest) -> FindDiskResponse;
        release_disk(ReleaseDiskRequest) -> ReleaseDiskResponse;
        create_container(CreateContainerRequest) -> CreateContainerResponse;
        update_container(UpdateContainerRequest) -> UpdateContainerResponse;
        pause_container(PauseContainerRequest) -> PauseContainerResponse;
        resume_container(ResumeContainerRequest) -> ResumeContainerResponse;
        boot_machine(BootMachineRequest) -> BootMachineResponse;
        start_machine(StartMachineRequest) -> StartMachineResponse;
    }
}
