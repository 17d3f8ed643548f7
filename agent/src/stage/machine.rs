//! The stage that becomes a process of a machine: in the machine's own namespaces, with the
//! privileges of its user and no others.

use super::command::Command;
use super::protocol::{Control, StageConfig};
use super::root::Root;
use super::{StageError, security, terminal};
use crate::machine::Account;
use crate::oci::parse_process;

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
