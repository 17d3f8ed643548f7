//! containerd's messages to and from the pod's types.

use std::path::{Path, PathBuf};

use podvisor_proto::containerd::pod_config::PodSandboxConfig;
use podvisor_proto::containerd::sandbox::CreateSandboxRequest;
use podvisor_proto::containerd::task::{
    self, CreateTaskRequest, ExecProcessRequest, StateResponse,
};
use podvisor_proto::containerd::timestamp;
use podvisor_proto::containerd::types::Mount;
use prost::{Message, Name};

use crate::config;
use crate::host::{HostMount, host_name};
use crate::io::Stdio;
use crate::pod::files::PodFiles;
use crate::pod::sandbox_spec::sandbox_spec;
use crate::sandbox::{
    CreateRequest, ExecPlan, PodRequest, ProcessId, ProcessState, ProcessStatus, TaskError,
};

/// The folder of a pod's files in its bundle.
const POD_FILES: &str = "files";

pub(super) fn process_id(container: String, exec: String) -> ProcessId {
    ProcessId { container, exec }
}

pub(super) fn create(request: CreateTaskRequest) -> Result<CreateRequest, TaskError> {
    if !request.checkpoint.is_empty() {
        return Err(TaskError::Invalid(
            "a checkpoint cannot be restored".to_owned(),
        ));
    }
    Ok(CreateRequest {
        id: request.id,
        bundle: request.bundle.into(),
        rootfs: request.rootfs.into_iter().map(host_mount).collect(),
        stdio: Stdio {
            terminal: request.terminal,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        },
        config_path: request.options.as_ref().and_then(config::named_by),
        pod: None,
    })
}

fn host_mount(mount: Mount) -> HostMount {
    HostMount {
        kind: mount.r#type,
        source: mount.source,
        options: mount.options,
    }
}

/// A pod to create, from its configuration as CRI has it.
pub(super) fn create_sandbox(
    request: CreateSandboxRequest,
    config_path: Option<PathBuf>,
) -> Result<CreateRequest, TaskError> {
    let options = request.options.unwrap_or_default();
    if options.type_url.trim_start_matches('/') != PodSandboxConfig::full_name() {
        let found = options.type_url;
        return Err(TaskError::Invalid(format!(
            "a sandbox is made of a {}, not of {found:?}",
            PodSandboxConfig::full_name()
        )));
    }
    let mut config = PodSandboxConfig::decode(options.value.as_slice())
        .map_err(|error| TaskError::Invalid(format!("the pod's configuration: {error}")))?;
    if config.hostname.is_empty() {
        config.hostname = host_name();
    }
    let bundle = PathBuf::from(request.bundle_path);
    let pod = PodRequest {
        spec: sandbox_spec(&config, &request.sandbox_id, Path::new(&request.netns_path)),
        files: PodFiles::of_pod(&config, bundle.join(POD_FILES)),
    };
    Ok(CreateRequest {
        id: request.sandbox_id,
        bundle,
        rootfs: Vec::new(),
        stdio: Stdio::default(),
        config_path,
        pod: Some(pod),
    })
}

pub(super) fn exec(request: ExecProcessRequest) -> Result<ExecPlan, TaskError> {
    let spec = request
        .spec
        .ok_or_else(|| TaskError::Invalid("an exec needs a process".to_owned()))?;
    if request.exec_id.is_empty() {
        return Err(TaskError::Invalid("an exec needs an identifier".to_owned()));
    }
    Ok(ExecPlan {
        container_id: request.id,
        exec_id: request.exec_id,
        process_json: spec.value,
        stdio: Stdio {
            terminal: request.terminal,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        },
    })
}

pub(super) fn state(id: &ProcessId, status: ProcessStatus) -> StateResponse {
    let exit = status.state.exit();
    StateResponse {
        id: id.container.clone(),
        bundle: status.bundle.display().to_string(),
        pid: status.pid,
        status: task_status(status.state, status.paused).into(),
        stdin: status.stdio.stdin,
        stdout: status.stdio.stdout,
        stderr: status.stdio.stderr,
        terminal: status.stdio.terminal,
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at: exit.map(|exit| timestamp(exit.at)),
        exec_id: id.exec.clone(),
    }
}

fn task_status(state: ProcessState, paused: bool) -> task::Status {
    match state {
        ProcessState::Creating { .. } | ProcessState::Created | ProcessState::Starting { .. } => {
            task::Status::Created
        }
        ProcessState::Running if paused => task::Status::Paused,
        ProcessState::Running => task::Status::Running,
        ProcessState::Stopped(_) | ProcessState::Deleting(_) => task::Status::Stopped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_is_made_of_a_pods_configuration_only() {
        let request = CreateSandboxRequest {
            sandbox_id: "id1".into(),
            ..CreateSandboxRequest::default()
        };
        let error = create_sandbox(request, None).unwrap_err().to_string();
        assert!(error.contains("runtime.v1.PodSandboxConfig"), "{error}");
    }

    #[test]
    fn a_checkpoint_is_refused() {
        let request = CreateTaskRequest {
            checkpoint: "/c".into(),
            ..Default::default()
        };
        assert!(matches!(create(request), Err(TaskError::Invalid(_))));
    }
}
