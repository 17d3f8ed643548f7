//! The agent of a guest without a machine: it answers from a table.

use std::sync::Arc;
use std::time::Duration;

use podvisor_proto::agent::v1::*;
use podvisor_proto::ttrpc::Status;
use podvisor_vmm::EndReason;

use super::fake::Guest;

pub struct FakeAgent(pub Arc<Guest>);

impl FakeAgent {
    fn known(&self, container: &str, exec: &str) -> Result<(), Status> {
        let key = (container.to_owned(), exec.to_owned());
        let known = self.0.state.lock().unwrap().processes.contains(&key);
        if known {
            Ok(())
        } else {
            Err(Status::not_found("no such process"))
        }
    }

    fn add(&self, container: &str, exec: &str) {
        let key = (container.to_owned(), exec.to_owned());
        self.0.state.lock().unwrap().processes.insert(key);
    }
}

impl Agent for FakeAgent {
    async fn configure_sandbox(
        &self,
        _: ConfigureSandboxRequest,
    ) -> Result<ConfigureSandboxResponse, Status> {
        Ok(ConfigureSandboxResponse {})
    }
    async fn configure_network(
        &self,
        _: ConfigureNetworkRequest,
    ) -> Result<ConfigureNetworkResponse, Status> {
        Ok(ConfigureNetworkResponse {})
    }
    async fn set_clock(&self, _: SetClockRequest) -> Result<SetClockResponse, Status> {
        Ok(SetClockResponse {})
    }
    async fn apply_volume(&self, _: ApplyVolumeRequest) -> Result<ApplyVolumeResponse, Status> {
        self.0.state.lock().unwrap().applied += 1;
        Ok(ApplyVolumeResponse {})
    }
    async fn make_volume(&self, _: MakeVolumeRequest) -> Result<MakeVolumeResponse, Status> {
        Ok(MakeVolumeResponse {})
    }
    async fn find_disk(&self, _: FindDiskRequest) -> Result<FindDiskResponse, Status> {
        Ok(FindDiskResponse {
            major: 254,
            minor: 0,
        })
    }
    async fn release_disk(&self, _: ReleaseDiskRequest) -> Result<ReleaseDiskResponse, Status> {
        Ok(ReleaseDiskResponse {})
    }
    async fn remove_volume(&self, _: RemoveVolumeRequest) -> Result<RemoveVolumeResponse, Status> {
        Ok(RemoveVolumeResponse {})
    }
    async fn mount_volumes(
        &self,
        request: MountVolumesRequest,
    ) -> Result<MountVolumesResponse, Status> {
        let mounted = request.mounts.into_iter();
        let mounted = mounted.map(|mount| (mount.target, mount.source)).collect();
        self.0.state.lock().unwrap().volumes.push(mounted);
        Ok(MountVolumesResponse::default())
    }
    async fn create_container(
        &self,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerResponse, Status> {
        if self.0.state.lock().unwrap().refuses {
            return Err(Status::invalid_argument("process.user: no such user"));
        }
        self.add(&request.container_id, "");
        if self.0.state.lock().unwrap().mumbles {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        Ok(CreateContainerResponse {
            pid: 2,
            ..CreateContainerResponse::default()
        })
    }
    async fn create_exec(&self, request: CreateExecRequest) -> Result<CreateExecResponse, Status> {
        self.known(&request.container_id, "")?;
        self.add(&request.container_id, &request.exec_id);
        let wanted = request.stdio.unwrap_or_default();
        let stdout = wanted.stdout.then(|| b"stdout".to_vec());
        let streams = StreamTokens {
            stdout: stdout.unwrap_or_default(),
            ..StreamTokens::default()
        };
        Ok(CreateExecResponse {
            streams: Some(streams),
        })
    }
    async fn start_process(
        &self,
        request: StartProcessRequest,
    ) -> Result<StartProcessResponse, Status> {
        self.known(&request.container_id, &request.exec_id)?;
        if request.exec_id == "missing" {
            return Err(Status::not_found(
                "exec: \"x\": executable file not found in $PATH",
            ));
        }
        Ok(StartProcessResponse { pid: 2 })
    }
    async fn signal_process(
        &self,
        request: SignalProcessRequest,
    ) -> Result<SignalProcessResponse, Status> {
        if self.0.state.lock().unwrap().deaf {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        self.known(&request.container_id, &request.exec_id)?;
        self.0.exit(
            &request.container_id,
            &request.exec_id,
            128 + request.signal,
        );
        Ok(SignalProcessResponse {})
    }
    async fn resize_terminal(
        &self,
        _: ResizeTerminalRequest,
    ) -> Result<ResizeTerminalResponse, Status> {
        Ok(ResizeTerminalResponse {})
    }
    async fn delete_process(
        &self,
        request: DeleteProcessRequest,
    ) -> Result<DeleteProcessResponse, Status> {
        self.known(&request.container_id, &request.exec_id)?;
        let key = (request.container_id, request.exec_id);
        self.0.state.lock().unwrap().processes.remove(&key);
        Ok(DeleteProcessResponse {})
    }
    async fn list_processes(
        &self,
        _: ListProcessesRequest,
    ) -> Result<ListProcessesResponse, Status> {
        Ok(ListProcessesResponse { pids: vec![7] })
    }
    async fn update_container(
        &self,
        request: UpdateContainerRequest,
    ) -> Result<UpdateContainerResponse, Status> {
        let mut state = self.0.state.lock().unwrap();
        if state.refuses {
            return Err(Status::internal("memory.max: device or resource busy"));
        }
        state.sizes.push(format!("update {}", request.container_id));
        Ok(UpdateContainerResponse {})
    }
    async fn use_hardware(
        &self,
        request: UseHardwareRequest,
    ) -> Result<UseHardwareResponse, Status> {
        let UseHardwareRequest {
            processors,
            memory_bytes,
        } = request;
        let used = format!("use {processors} {}", memory_bytes >> 20);
        self.0.state.lock().unwrap().sizes.push(used);
        Ok(UseHardwareResponse {})
    }
    async fn pause_container(
        &self,
        _: PauseContainerRequest,
    ) -> Result<PauseContainerResponse, Status> {
        Ok(PauseContainerResponse {})
    }
    async fn resume_container(
        &self,
        _: ResumeContainerRequest,
    ) -> Result<ResumeContainerResponse, Status> {
        Ok(ResumeContainerResponse {})
    }
    async fn container_stats(
        &self,
        _: ContainerStatsRequest,
    ) -> Result<ContainerStatsResponse, Status> {
        Ok(ContainerStatsResponse { metrics: vec![1] })
    }
    async fn sandbox_stats(&self, _: SandboxStatsRequest) -> Result<SandboxStatsResponse, Status> {
        Ok(SandboxStatsResponse::default())
    }
    async fn next_events(&self, request: NextEventsRequest) -> Result<NextEventsResponse, Status> {
        loop {
            let changed = self.0.changed.notified();
            let events: Vec<Event> = {
                let state = self.0.state.lock().unwrap();
                state
                    .events
                    .iter()
                    .filter(|event| event.sequence > request.after)
                    .cloned()
                    .collect()
            };
            if !events.is_empty() {
                return Ok(NextEventsResponse { events });
            }
            changed.await;
        }
    }
    async fn boot_machine(&self, _: BootMachineRequest) -> Result<BootMachineResponse, Status> {
        let mut state = self.0.state.lock().unwrap();
        state.boots += 1;
        state.silent = state.agentless;
        if state.unbootable {
            return Err(Status::failed_precondition("disk boot: no partition table"));
        }
        Ok(BootMachineResponse::default())
    }
    async fn start_machine(&self, _: StartMachineRequest) -> Result<StartMachineResponse, Status> {
        Ok(StartMachineResponse {})
    }
    async fn shutdown(&self, _: ShutdownRequest) -> Result<ShutdownResponse, Status> {
        self.0.end(EndReason::Shutdown);
        Ok(ShutdownResponse {})
    }
}
