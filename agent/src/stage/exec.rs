//! The stage that becomes an additional process of a running container. It is
//! born in the container's cgroup and pid namespace and joins the others here.

use std::os::fd::AsFd as _;

use rustix::thread::ThreadNameSpaceType as Kind;

use super::command::Command;
use super::protocol::{Control, StageConfig};
use super::root::Root;
use super::{CONTAINER_FD, StageError, inherited, seccomp, security, terminal};
use crate::oci::{NamespaceKind, Spec, parse_process};

/// Prepares the process up to execve.
///
/// # Errors
///
/// [`StageError`] with the step.
pub fn prepare(config: &StageConfig, control: &Control) -> Result<Command, StageError> {
    let spec = Spec::parse(&config.spec_json)?;
    let process = parse_process(&config.process_json)?;
    let filter = spec
        .linux
        .seccomp
        .as_ref()
        .map(seccomp::compile)
        .transpose()?;
    let container = inherited(CONTAINER_FD);
    rustix::process::setsid().map_err(StageError::step("setsid"))?;
    security::set_oom_score(process.oom_score_adj)?;
    security::enter_profile_at_exec(&spec.process.apparmor_profile)?;
    // Joining a namespace that is already one's own is harmless, except for the
    // user namespace, where it is an error.
    let mut kinds = Kind::MOUNT
        | Kind::HOST_NAME_AND_NIS_DOMAIN_NAME
        | Kind::INTER_PROCESS_COMMUNICATION
        | Kind::NETWORK
        | Kind::CONTROL_GROUP;
    if spec.linux.has_own(NamespaceKind::User) {
        kinds |= Kind::USER;
    }
    rustix::thread::move_into_thread_name_spaces(container.as_fd(), kinds)
        .map_err(StageError::step("join the container's namespaces"))?;
    if spec.linux.has_own(NamespaceKind::User) {
        security::become_root()?;
    }
    if config.terminal {
        let root = Root::open("/").map_err(StageError::step("open the container's root"))?;
        terminal::attach(&root, config, &process, control, false)?;
    }
    Command::new(process, filter)
}
