//! The sandbox service, for containerd's sandboxer "shim" (containerd, `api/runtime/sandbox/v1`).
//! A sandbox is a task without a process: each call here is one about that task.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use podvisor_proto::cgroups::METRICS_TYPE_URL;
use podvisor_proto::containerd::sandbox::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, Sandbox, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest,
    WaitSandboxResponse,
};
use podvisor_proto::containerd::types::{Metric, Platform};
use podvisor_proto::containerd::{Any, now, timestamp};
use podvisor_proto::ttrpc::Status;

use super::{convert, status};
use crate::sandbox::{ProcessId, ProcessState, Reply, Request, SandboxHandle, TaskError};

/// What containerd reads of a pod that runs, and of one that does not.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";
/// What images must be built for, in the words of the OCI image specification.
const OS: &str = "linux";
const ARCHITECTURE: &str = "amd64";

/// Serves a pod.
pub struct SandboxService {
    sandbox: SandboxHandle,
    /// The configuration that containerd's runtime options name.
    config_path: Option<PathBuf>,
    created_at: Mutex<Option<SystemTime>>,
}

impl SandboxService {
    /// A service for `sandbox`, whose node's configuration is at `config_path` when that is not
    /// the default place.
    pub fn new(sandbox: SandboxHandle, config_path: Option<PathBuf>) -> Self {
        Self {
            sandbox,
            config_path,
            created_at: Mutex::default(),
        }
    }

    async fn call<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Status> {
        let answer = self.sandbox.call(request).await;
        answer.map_err(|error| status::of(&error))
    }

    fn created_at(&self) -> Option<SystemTime> {
        *self
            .created_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        request: CreateSandboxRequest,
    ) -> Result<CreateSandboxResponse, Status> {
        let request = convert::create_sandbox(request, self.config_path.clone());
        let request = Box::new(request.map_err(|error| status::of(&error))?);
        self.call(|reply| Request::Create(request, reply)).await?;
        *self
            .created_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(SystemTime::now());
        Ok(CreateSandboxResponse {})
    }

    async fn start_sandbox(
        &self,
        request: StartSandboxRequest,
    ) -> Result<StartSandboxResponse, Status> {
        let id = ProcessId::init(&request.sandbox_id);
        self.call(|reply| Request::Start(id, reply)).await?;
        Ok(StartSandboxResponse {
            pid: std::process::id(),
            created_at: self.created_at().map(timestamp),
            spec: None,
        })
    }

    async fn platform(&self, _: PlatformRequest) -> Result<PlatformResponse, Status> {
        Ok(PlatformResponse {
            platform: Some(Platform {
                os: OS.to_owned(),
                architecture: ARCHITECTURE.to_owned(),
                ..Platform::default()
            }),
        })
    }

    async fn stop_sandbox(&self, _: StopSandboxRequest) -> Result<StopSandboxResponse, Status> {
        self.call(Request::Stop).await?;
        Ok(StopSandboxResponse {})
    }

    async fn wait_sandbox(
        &self,
        request: WaitSandboxRequest,
    ) -> Result<WaitSandboxResponse, Status> {
        let id = ProcessId::init(&request.sandbox_id);
        let exit = self.call(|reply| Request::Wait(id, reply)).await?;
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)),
        })
    }

    async fn sandbox_status(
        &self,
        request: SandboxStatusRequest,
    ) -> Result<SandboxStatusResponse, Status> {
        let id = ProcessId::init(&request.sandbox_id);
        // containerd wants a state, not an error, of a pod that is not there.
        let found = self.sandbox.call(|reply| Request::Status(id, reply)).await;
        let state = found.ok().map(|found| found.state);
        let runs = state.is_some_and(|state| matches!(state, ProcessState::Running));
        let exit = state.and_then(ProcessState::exit);
        Ok(SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            // Members are given paths below /proc of this process, and ignored.
            pid: std::process::id(),
            state: if runs { READY } else { NOT_READY }.to_owned(),
            created_at: self.created_at().map(timestamp),
            exited_at: exit.map(|exit| timestamp(exit.at)),
            ..SandboxStatusResponse::default()
        })
    }

    async fn ping_sandbox(&self, _: PingRequest) -> Result<PingResponse, Status> {
        Ok(PingResponse {})
    }

    async fn shutdown_sandbox(
        &self,
        request: ShutdownSandboxRequest,
    ) -> Result<ShutdownSandboxResponse, Status> {
        let id = ProcessId::init(&request.sandbox_id);
        self.call(Request::Stop).await?;
        match self.sandbox.call(|reply| Request::Delete(id, reply)).await {
            // One whose creation failed is not there.
            Ok(_) | Err(TaskError::NotFound(_) | TaskError::Gone) => {}
            Err(error) => return Err(status::of(&error)),
        }
        match self.sandbox.call(Request::Shutdown).await {
            Ok(_) | Err(TaskError::Gone) => Ok(ShutdownSandboxResponse {}),
            Err(error) => Err(status::of(&error)),
        }
    }

    async fn sandbox_metrics(
        &self,
        request: SandboxMetricsRequest,
    ) -> Result<SandboxMetricsResponse, Status> {
        let id = request.sandbox_id.clone();
        let value = self.call(|reply| Request::Stats(id, reply)).await?;
        Ok(SandboxMetricsResponse {
            metrics: Some(Metric {
                timestamp: Some(now()),
                id: request.sandbox_id,
                data: Some(Any {
                    type_url: METRICS_TYPE_URL.to_owned(),
                    value,
                }),
            }),
        })
    }
}
