//! containerd's messages to and from the pod's types.

use std::path::PathBuf;

use podvisor_proto::containerd::task::{
    self, CreateTaskRequest, ExecProcessRequest, StateResponse,
};
use podvisor_proto::containerd::types::Mount;
use podvisor_proto::containerd::{Any, runtimeoptions, timestamp};
use prost::{Message, Name};

use crate::host::HostMount;
use crate::io::Stdio;
use crate::sandbox::{CreateRequest, ExecPlan, ProcessId, ProcessState, ProcessStatus, TaskError};

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
        config_path: request.options.as_ref().and_then(config_path),
    })
}

fn host_mount(mount: Mount) -> HostMount {
    HostMount {
        kind: mount.r#type,
        source: mount.source,
        options: mount.options,
    }
}

/// The configuration file that runtime options name. Options of another type, as they come with
/// user namespaces, name none.
fn config_path(options: &Any) -> Option<PathBuf> {
    if options.type_url.trim_start_matches('/') != runtimeoptions::Options::full_name() {
        return None;
    }
    let options = runtimeoptions::Options::decode(options.value.as_slice()).ok()?;
    Some(options.config_path)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
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
    use podvisor_proto::containerd::any_of;

    use super::*;

    #[test]
    fn runtime_options_name_a_configuration() {
        let options = runtimeoptions::Options {
            config_path: "/etc/x.toml".into(),
            ..Default::default()
        };
        assert_eq!(config_path(&any_of(&options)), Some("/etc/x.toml".into()));
        let other = Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: vec![0xff],
        };
        assert_eq!(config_path(&other), None);
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
