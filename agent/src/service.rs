//! The agent's API: every call is translated and passed on, every error mapped
//! to its status code.

use std::sync::Arc;

use podvisor_proto::agent::v1::*;
use podvisor_proto::cgroups::Metrics;
use podvisor_proto::ttrpc::Status;
use prost::Message as _;

use crate::apparmor::{self, PolicyError};
use crate::boot;
use crate::cgroup;
use crate::container::{ContainerError, Containers, LaunchError, ProcessKey};
use crate::disks::{self, DiskError};
use crate::error_chain;
use crate::hardware;
use crate::memory_volumes;
use crate::network::NetworkError;
use crate::pod_users::PodUsersError;
use crate::sandbox::{self, SandboxError};
use crate::stage::protocol::FailureKind;
use crate::volumes::{self, VolumeError};

/// Implements the API on the pod's containers.
pub struct AgentService {
    containers: Arc<Containers>,
}

impl AgentService {
    /// Serves `containers`.
    #[must_use]
    pub fn new(containers: Arc<Containers>) -> Self {
        Self { containers }
    }
}

fn key(container_id: String, exec_id: String) -> ProcessKey {
    ProcessKey {
        container_id,
        exec_id,
    }
}

fn encoded(metrics: &Metrics) -> Vec<u8> {
    metrics.encode_to_vec()
}

impl From<ContainerError> for Status {
    fn from(error: ContainerError) -> Self {
        let message = error_chain(&error);
        match error {
            ContainerError::NotFound(_) => Self::not_found(message),
            ContainerError::Exists(_) => Self::already_exists(message),
            ContainerError::Phase { .. } => Self::failed_precondition(message),
            ContainerError::Malformed(_)
            | ContainerError::Spec(_)
            | ContainerError::HugePages(_) => Self::invalid_argument(message),
            ContainerError::Launch(error) => launch_status(&error, message),
            ContainerError::Cgroup(_)
            | ContainerError::PodPid(_)
            | ContainerError::Streams(_)
            | ContainerError::Signal { .. }
            | ContainerError::Terminal(_) => Self::internal(message),
        }
    }
}

/// A stage's own words are what people read when their command does not start.
fn launch_status(error: &LaunchError, message: String) -> Status {
    match error {
        LaunchError::Stage(failure) => match failure.kind() {
            FailureKind::NotFound => Status::not_found(failure.message.clone()),
            FailureKind::PermissionDenied => Status::permission_denied(failure.message.clone()),
            FailureKind::InvalidArgument => Status::invalid_argument(failure.message.clone()),
            FailureKind::Internal => Status::internal(failure.message.clone()),
        },
        LaunchError::Start { .. } | LaunchError::Died => Status::internal(message),
    }
}

impl From<SandboxError> for Status {
    fn from(error: SandboxError) -> Self {
        let message = error_chain(&error);
        match error {
            SandboxError::Network(NetworkError::Malformed { .. }) => {
                Self::invalid_argument(message)
            }
            SandboxError::Network(NetworkError::NoInterface(_)) => Self::not_found(message),
            SandboxError::Network(
                NetworkError::Socket(_) | NetworkError::List(_) | NetworkError::Kernel { .. },
            )
            | SandboxError::Step { .. } => Self::internal(message),
            SandboxError::Users(PodUsersError::Map(_)) => Self::invalid_argument(message),
            SandboxError::Users(
                PodUsersError::Make(_) | PodUsersError::Join(_) | PodUsersError::Network(_),
            ) => Self::internal(message),
        }
    }
}

impl From<PolicyError> for Status {
    fn from(error: PolicyError) -> Self {
        Self::failed_precondition(error_chain(&error))
    }
}

impl From<VolumeError> for Status {
    fn from(error: VolumeError) -> Self {
        let message = error_chain(&error);
        match error {
            VolumeError::Name { .. } => Self::invalid_argument(message),
            VolumeError::Entry { .. } => Self::internal(message),
        }
    }
}

impl From<DiskError> for Status {
    fn from(error: DiskError) -> Self {
        let message = error_chain(&error);
        match error {
            DiskError::Missing(_) => Self::not_found(message),
            DiskError::Sysfs { .. } => Self::internal(message),
        }
    }
}

impl Agent for AgentService {
    async fn configure_sandbox(
        &self,
        request: ConfigureSandboxRequest,
    ) -> Result<ConfigureSandboxResponse, Status> {
        let users = sandbox::configure(&request)?;
        self.containers.set_users(users);
        Ok(ConfigureSandboxResponse {})
    }

    async fn configure_network(
        &self,
        request: ConfigureNetworkRequest,
    ) -> Result<ConfigureNetworkResponse, Status> {
        sandbox::configure_network(&request.network.unwrap_or_default())?;
        Ok(ConfigureNetworkResponse {})
    }

    async fn set_clock(&self, request: SetClockRequest) -> Result<SetClockResponse, Status> {
        sandbox::set_clock(request.wall_clock_ns)?;
        Ok(SetClockResponse {})
    }

    async fn apply_volume(
        &self,
        request: ApplyVolumeRequest,
    ) -> Result<ApplyVolumeResponse, Status> {
        volumes::apply(&request.volume_id, &request.entries)?;
        Ok(ApplyVolumeResponse {})
    }

    async fn make_volume(&self, request: MakeVolumeRequest) -> Result<MakeVolumeResponse, Status> {
        memory_volumes::make(&request)?;
        Ok(MakeVolumeResponse {})
    }

    async fn find_disk(&self, request: FindDiskRequest) -> Result<FindDiskResponse, Status> {
        let (major, minor) = disks::find(&request.serial)?;
        Ok(FindDiskResponse { major, minor })
    }

    async fn release_disk(
        &self,
        request: ReleaseDiskRequest,
    ) -> Result<ReleaseDiskResponse, Status> {
        disks::release(&request.serial)?;
        Ok(ReleaseDiskResponse {})
    }

    async fn remove_volume(
        &self,
        request: RemoveVolumeRequest,
    ) -> Result<RemoveVolumeResponse, Status> {
        volumes::remove(&request.volume_id)?;
        Ok(RemoveVolumeResponse {})
    }

    async fn mount_volumes(&self, _: MountVolumesRequest) -> Result<MountVolumesResponse, Status> {
        let message = "this guest runs containers, which mount volumes themselves";
        Err(Status::failed_precondition(message))
    }

    async fn create_container(
        &self,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerResponse, Status> {
        let stdio = request.stdio.unwrap_or_default();
        if !request.apparmor_policy.is_empty() {
            apparmor::load(&request.apparmor_policy)?;
        }
        let created = self.containers.create(
            &request.container_id,
            request.spec_json,
            &stdio,
            &request.pid_namespace_of,
        );
        let (pid, streams) = created.await?;
        Ok(CreateContainerResponse {
            pid,
            streams: Some(streams),
        })
    }

    async fn create_exec(&self, request: CreateExecRequest) -> Result<CreateExecResponse, Status> {
        let key = key(request.container_id, request.exec_id);
        let stdio = request.stdio.unwrap_or_default();
        let streams = self
            .containers
            .create_exec(&key, request.process_json, &stdio)?;
        Ok(CreateExecResponse {
            streams: Some(streams),
        })
    }

    async fn start_process(
        &self,
        request: StartProcessRequest,
    ) -> Result<StartProcessResponse, Status> {
        let pid = self
            .containers
            .start(&key(request.container_id, request.exec_id))
            .await?;
        Ok(StartProcessResponse { pid })
    }

    async fn signal_process(
        &self,
        request: SignalProcessRequest,
    ) -> Result<SignalProcessResponse, Status> {
        let key = key(request.container_id, request.exec_id);
        self.containers.signal(&key, request.signal, request.all)?;
        Ok(SignalProcessResponse {})
    }

    async fn resize_terminal(
        &self,
        request: ResizeTerminalRequest,
    ) -> Result<ResizeTerminalResponse, Status> {
        let key = key(request.container_id, request.exec_id);
        self.containers
            .resize(&key, request.rows, request.columns)?;
        Ok(ResizeTerminalResponse {})
    }

    async fn delete_process(
        &self,
        request: DeleteProcessRequest,
    ) -> Result<DeleteProcessResponse, Status> {
        self.containers
            .delete(&key(request.container_id, request.exec_id))
            .await?;
        Ok(DeleteProcessResponse {})
    }

    async fn list_processes(
        &self,
        request: ListProcessesRequest,
    ) -> Result<ListProcessesResponse, Status> {
        let pids = self.containers.processes(&request.container_id)?;
        Ok(ListProcessesResponse { pids })
    }

    async fn update_container(
        &self,
        request: UpdateContainerRequest,
    ) -> Result<UpdateContainerResponse, Status> {
        self.containers
            .update(&request.container_id, &request.resources_json)?;
        Ok(UpdateContainerResponse {})
    }

    async fn use_hardware(
        &self,
        request: UseHardwareRequest,
    ) -> Result<UseHardwareResponse, Status> {
        hardware::take_into_use(request.processors, request.memory_bytes).await?;
        // Memory that comes has the kernel choose its reserve anew.
        if let Err(error) = boot::lower_reserve() {
            tracing::warn!(%error, "the kernel's reserve stays");
        }
        Ok(UseHardwareResponse {})
    }

    async fn pause_container(
        &self,
        request: PauseContainerRequest,
    ) -> Result<PauseContainerResponse, Status> {
        self.containers.pause(&request.container_id).await?;
        Ok(PauseContainerResponse {})
    }

    async fn resume_container(
        &self,
        request: ResumeContainerRequest,
    ) -> Result<ResumeContainerResponse, Status> {
        self.containers.resume(&request.container_id)?;
        Ok(ResumeContainerResponse {})
    }

    async fn container_stats(
        &self,
        request: ContainerStatsRequest,
    ) -> Result<ContainerStatsResponse, Status> {
        let metrics = encoded(&self.containers.metrics(&request.container_id)?);
        Ok(ContainerStatsResponse { metrics })
    }

    async fn sandbox_stats(&self, _: SandboxStatsRequest) -> Result<SandboxStatsResponse, Status> {
        let (memory_total_bytes, memory_available_bytes) = sandbox::memory_bytes();
        let metrics = encoded(&cgroup::pod().metrics());
        Ok(SandboxStatsResponse {
            metrics,
            memory_total_bytes,
            memory_available_bytes,
        })
    }

    async fn next_events(&self, request: NextEventsRequest) -> Result<NextEventsResponse, Status> {
        let events = self.containers.events.next(request.after).await;
        Ok(NextEventsResponse { events })
    }

    async fn shutdown(&self, _: ShutdownRequest) -> Result<ShutdownResponse, Status> {
        sandbox::shut_down();
        Ok(ShutdownResponse {})
    }

    async fn boot_machine(&self, _: BootMachineRequest) -> Result<BootMachineResponse, Status> {
        Err(no_boot_stage())
    }

    async fn start_machine(&self, _: StartMachineRequest) -> Result<StartMachineResponse, Status> {
        Err(no_boot_stage())
    }
}

fn no_boot_stage() -> Status {
    Status::failed_precondition("this guest runs containers; it boots no machine")
}
