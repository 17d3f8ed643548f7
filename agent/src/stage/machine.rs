//! The stage that becomes a process of a machine: in the machine's own namespaces, with the
//! privileges of its user and no others.

use rustix::process::{Resource, Rlimit};

use super::command::Command;
use super::protocol::{Control, StageConfig};
use super::root::Root;
use super::{StageError, security, terminal};
use crate::machine::Account;
use crate::oci::parse_process;

/// Descriptors that a process may open before it asks for more.
const OPEN_FILES: u64 = 1024;

/// Prepares the process up to execve. What the specification says of confinement was meant for a
/// container: the machine is what confines.
///
/// # Errors
///
/// [`StageError`] with the step.
pub fn prepare(config: &StageConfig, control: &Control) -> Result<Command, StageError> {
    let mut process = parse_process(&config.process_json)?;
    rustix::process::setsid().map_err(StageError::step("setsid"))?;
    security::set_oom_score(process.oom_score_adj)?;
    lower_open_files()?;
    if let Some(account) = Account::of(process.user.uid) {
        let more = account.environment(&process.env);
        process.env.extend(more);
        if process.user.additional_gids.is_empty() {
            process.user.additional_gids = account.groups;
        }
    }
    if config.terminal {
        let root = Root::open("/").map_err(StageError::step("open the root"))?;
        terminal::attach(&root, config, &process, control, false)?;
    }
    Command::of_machine(process)
}

/// Programs that use select(2) expect no more descriptors unless they ask for them (systemd's
/// NEWS of version 240); the agent itself has many.
fn lower_open_files() -> Result<(), StageError> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let lowered = Rlimit {
        current: Some(OPEN_FILES),
        ..limit
    };
    rustix::process::setrlimit(Resource::Nofile, lowered)
        .map_err(StageError::step("set the number of open files"))
}
