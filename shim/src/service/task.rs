//! The task service, versions 2 and 3 (containerd, `api/runtime/task`).

use podvisor_proto::cgroups::METRICS_TYPE_URL;
use podvisor_proto::containerd::task::{
    CheckpointTaskRequest, CloseIoRequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, Task, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use podvisor_proto::containerd::{Any, timestamp};
use podvisor_proto::ttrpc::Status;

use super::{convert, status};
use crate::sandbox::{Reply, Request, SandboxHandle, TaskError};

/// Serves a pod's tasks.
pub struct TaskService {
    sandbox: SandboxHandle,
}

impl TaskService {
    /// A service for `sandbox`.
    pub fn new(sandbox: SandboxHandle) -> Self {
        Self { sandbox }
    }

    async fn call<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Status> {
        self.sandbox
            .call(request)
            .await
            .map_err(|error| status::of(&error))
    }

    /// A task's number among the host's processes; the pod's of one that is not there.
    async fn pid(&self, id: String) -> u32 {
        let process = convert::process_id(id, String::new());
        let found = self.call(|reply| Request::Status(process, reply)).await;
        found.map_or_else(|_| std::process::id(), |status| status.pid)
    }
}

fn invalid(error: TaskError) -> Status {
    status::of(&error)
}

impl Task for TaskService {
    async fn create(&self, request: CreateTaskRequest) -> Result<CreateTaskResponse, Status> {
        let id = request.id.clone();
        let request = Box::new(convert::create(request).map_err(invalid)?);
        self.call(|reply| Request::Create(request, reply)).await?;
        let pid = self.pid(id).await;
        Ok(CreateTaskResponse { pid })
    }

    async fn start(&self, request: StartRequest) -> Result<StartResponse, Status> {
        let process = convert::process_id(request.id.clone(), request.exec_id);
        self.call(|reply| Request::Start(process, reply)).await?;
        let pid = self.pid(request.id).await;
        Ok(StartResponse { pid })
    }

    async fn exec(&self, request: ExecProcessRequest) -> Result<(), Status> {
        let plan = Box::new(convert::exec(request).map_err(invalid)?);
        self.call(|reply| Request::Exec(plan, reply)).await
    }

    async fn kill(&self, request: KillRequest) -> Result<(), Status> {
        let process = convert::process_id(request.id, request.exec_id);
        let (signal, all) = (request.signal, request.all);
        let answer = self
            .sandbox
            .call(|reply| Request::Signal {
                process,
                signal,
                all,
                reply,
            })
            .await;
        answer.map_err(|error| status::of_kill(&error))
    }

    async fn wait(&self, request: WaitRequest) -> Result<WaitResponse, Status> {
        let process = convert::process_id(request.id, request.exec_id);
        let exit = self.call(|reply| Request::Wait(process, reply)).await?;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)),
        })
    }

    async fn state(&self, request: StateRequest) -> Result<StateResponse, Status> {
        let process = convert::process_id(request.id, request.exec_id);
        let asked = process.clone();
        let found = self.call(|reply| Request::Status(asked, reply)).await?;
        Ok(convert::state(&process, found))
    }

    async fn pids(&self, request: PidsRequest) -> Result<PidsResponse, Status> {
        let mut pids = self
            .call(|reply| Request::Processes(request.id, reply))
            .await?;
        if pids.is_empty() {
            // containerd takes a live task without processes for a leaked one.
            pids.push(std::process::id());
        }
        let processes = pids.into_iter().map(|pid| ProcessInfo { pid, info: None });
        Ok(PidsResponse {
            processes: processes.collect(),
        })
    }

    async fn delete(&self, request: DeleteRequest) -> Result<DeleteResponse, Status> {
        let pid = self.pid(request.id.clone()).await;
        let process = convert::process_id(request.id, request.exec_id);
        let deleted = self.call(|reply| Request::Delete(process, reply)).await?;
        Ok(DeleteResponse {
            pid,
            exit_status: deleted.exit.status,
            exited_at: Some(timestamp(deleted.exit.at)),
        })
    }

    async fn resize_pty(&self, request: ResizePtyRequest) -> Result<(), Status> {
        let process = convert::process_id(request.id, request.exec_id);
        let (rows, columns) = (request.height, request.width);
        self.call(|reply| Request::Resize {
            process,
            rows,
            columns,
            reply,
        })
        .await
    }

    async fn close_io(&self, request: CloseIoRequest) -> Result<(), Status> {
        let process = convert::process_id(request.id, request.exec_id);
        if request.stdin {
            self.call(|reply| Request::CloseInput(process, reply))
                .await?;
        }
        Ok(())
    }

    async fn update(&self, request: UpdateTaskRequest) -> Result<(), Status> {
        let resources = request
            .resources
            .map(|resources| resources.value)
            .unwrap_or_default();
        self.call(|reply| Request::Update(request.id, resources, reply))
            .await
    }

    async fn pause(&self, request: PauseRequest) -> Result<(), Status> {
        let container = request.id;
        self.call(|reply| Request::Freeze {
            container,
            frozen: true,
            reply,
        })
        .await
    }

    async fn resume(&self, request: ResumeRequest) -> Result<(), Status> {
        let container = request.id;
        self.call(|reply| Request::Freeze {
            container,
            frozen: false,
            reply,
        })
        .await
    }

    async fn checkpoint(&self, _request: CheckpointTaskRequest) -> Result<(), Status> {
        Err(Status::unimplemented(
            "containers in VM pods cannot be checkpointed",
        ))
    }

    async fn stats(&self, request: StatsRequest) -> Result<StatsResponse, Status> {
        let value = self.call(|reply| Request::Stats(request.id, reply)).await?;
        Ok(StatsResponse {
            stats: Some(Any {
                type_url: METRICS_TYPE_URL.to_owned(),
                value,
            }),
        })
    }

    async fn connect(&self, request: ConnectRequest) -> Result<ConnectResponse, Status> {
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            // containerd asks for members before they are created, too.
            task_pid: self.pid(request.id).await,
            version: String::new(),
        })
    }

    async fn shutdown(&self, _request: ShutdownRequest) -> Result<(), Status> {
        match self.sandbox.call(Request::Shutdown).await {
            Ok(_) | Err(TaskError::Gone) => Ok(()),
            Err(error) => Err(status::of(&error)),
        }
    }
}
