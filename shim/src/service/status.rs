//! Errors as ttrpc statuses. containerd acts on the code; people read the message.

use podvisor_proto::ttrpc::{Code, Status};

use crate::sandbox::{Refusal, TaskError, chain};

/// The status of a failed call.
pub(super) fn of(error: &TaskError) -> Status {
    Status::new(code(error), chain(error))
}

/// The status of a failed Kill: of a process that has ended containerd expects "not found".
pub(super) fn of_kill(error: &TaskError) -> Status {
    match error {
        TaskError::Refused {
            source: Refusal::Ended | Refusal::BeingDeleted,
            ..
        } => Status::new(Code::NotFound, chain(error)),
        other => of(other),
    }
}

fn code(error: &TaskError) -> Code {
    match error {
        TaskError::NotFound(_) => Code::NotFound,
        TaskError::Exists(_) => Code::AlreadyExists,
        TaskError::Refused { .. }
        | TaskError::NoGuest(_)
        | TaskError::NotRunning(_)
        | TaskError::IsMachine
        | TaskError::NoAgent
        | TaskError::NoCommands(_)
        | TaskError::Order(_)
        | TaskError::Growth(_)
        | TaskError::Disks(_)
        | TaskError::Store(_) => Code::FailedPrecondition,
        TaskError::Annotation(_)
        | TaskError::Size(_)
        | TaskError::HostNetwork(_)
        | TaskError::Spec(_)
        | TaskError::Resources(_)
        | TaskError::Room(_)
        | TaskError::Binding(_)
        | TaskError::Invalid(_)
        | TaskError::Source(_)
        | TaskError::Seed(_)
        | TaskError::Nics(_)
        | TaskError::Hardware(_)
        | TaskError::Volume(_)
        | TaskError::FileDisk { .. }
        | TaskError::Bundle(_)
        | TaskError::Cgroup(_)
        | TaskError::Stdio(_) => Code::InvalidArgument,
        TaskError::Config(_)
        | TaskError::Setup(_)
        | TaskError::Thread(_)
        | TaskError::Boot(_)
        | TaskError::Host(_)
        | TaskError::Pin(_)
        | TaskError::Export(_)
        | TaskError::Disk(_)
        | TaskError::Origin(_)
        | TaskError::Mirror(_) => Code::Internal,
        TaskError::Mount { source, .. } => code(source),
        TaskError::Gone => Code::Unavailable,
        TaskError::Agent(status) => agent_code(status.code()),
    }
}

/// The agent's codes mean the same, except that containerd takes "unimplemented" for a shim of an
/// older version.
fn agent_code(code: Code) -> Code {
    if code == Code::Unimplemented {
        Code::Internal
    } else {
        code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_of_what_has_ended_finds_nothing() {
        let ended = TaskError::Refused {
            process: "container c".into(),
            source: Refusal::Ended,
        };
        assert_eq!(of_kill(&ended).code(), Code::NotFound);
        assert_eq!(of(&ended).code(), Code::FailedPrecondition);
    }

    #[test]
    fn a_method_that_exists_is_never_unimplemented() {
        let error = TaskError::Agent(Status::unimplemented("old agent"));
        assert_eq!(of(&error).code(), Code::Internal);
    }

    #[test]
    fn a_message_holds_all_causes_once() {
        let refused = TaskError::Refused {
            process: "container c".into(),
            source: Refusal::StillRuns,
        };
        let message = of(&refused).message().to_owned();
        assert_eq!(message.matches("runs").count(), 1, "{message}");
        assert!(message.starts_with("container c: "), "{message}");
    }
}
