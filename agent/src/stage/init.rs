//! The stage that becomes a container's init. It is born in its cgroup, its pid
//! and its user namespace; everything else is done here.

use std::os::unix::fs::DirBuilderExt as _;

use rustix::thread::UnshareFlags;

use super::command::Command;
use super::protocol::{Control, StageConfig};
use super::{StageError, rootfs, seccomp, security, terminal};
use crate::oci::{Linux, NamespaceKind, Spec};

/// Prepares the container up to execve.
///
/// # Errors
///
/// [`StageError`] with the step.
pub fn prepare(config: &StageConfig, control: &Control) -> Result<Command, StageError> {
    let spec = Spec::parse(&config.spec_json)?;
    let filter = spec
        .linux
        .seccomp
        .as_ref()
        .map(seccomp::compile)
        .transpose()?;
    rustix::process::setsid().map_err(StageError::step("setsid"))?;
    security::set_oom_score(spec.process.oom_score_adj)?;
    security::enter_profile_at_exec(&spec.process.apparmor_profile)?;
    enter_namespaces(&spec.linux)?;
    if spec.linux.has_own(NamespaceKind::Network) {
        crate::network::bring_loopback_up()
            .map_err(std::io::Error::other)
            .map_err(StageError::step("bring up the loopback interface"))?;
    }
    if spec.linux.has_own(NamespaceKind::Uts) {
        set_names(&spec)?;
    }
    let root = rootfs::build(&spec)?;
    for (name, value) in &spec.linux.sysctl {
        crate::sysctl::write(name, value)
            .map_err(StageError::step(format!("linux.sysctl {name}")))?;
    }
    if config.terminal {
        terminal::attach(&root, config, &spec.process, control, true)?;
    }
    rootfs::restrict(&root, &spec)?;
    rootfs::enter(&root, &spec)?;
    create_working_directory(&spec.process.cwd);
    Command::new(spec.process, filter)
}

/// Leaves the agent's namespaces for those the container has for itself. The
/// mount namespace is always its own.
fn enter_namespaces(linux: &Linux) -> Result<(), StageError> {
    let mut flags = UnshareFlags::NEWNS;
    for namespace in &linux.namespaces {
        flags |= match namespace.kind {
            NamespaceKind::Network => UnshareFlags::NEWNET,
            NamespaceKind::Ipc => UnshareFlags::NEWIPC,
            NamespaceKind::Uts => UnshareFlags::NEWUTS,
            NamespaceKind::Cgroup => UnshareFlags::NEWCGROUP,
            // Made by clone3, or always.
            NamespaceKind::Pid | NamespaceKind::User | NamespaceKind::Mount => {
                UnshareFlags::empty()
            }
        };
    }
    // SAFETY: none of the flags concerns memory or descriptors of this process.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(StageError::step("unshare namespaces"))
}

fn set_names(spec: &Spec) -> Result<(), StageError> {
    if !spec.hostname.is_empty() {
        rustix::system::sethostname(spec.hostname.as_bytes())
            .map_err(StageError::step("set hostname"))?;
    }
    if !spec.domainname.is_empty() {
        rustix::system::setdomainname(spec.domainname.as_bytes())
            .map_err(StageError::step("set domainname"))?;
    }
    Ok(())
}

/// Makes the working directory when the image lacks it, as runc does.
fn create_working_directory(path: &str) {
    // The agent has no umask. On a read-only root this fails; chdir then reports it.
    let _ = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path);
}
