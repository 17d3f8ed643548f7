//! Identity and privileges of a process: OOM score, resource limits, user and
//! groups, capabilities, no-new-privileges, AppArmor profile.

use std::io;

use rustix::fs::{FileType, Mode};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::StageError;
use crate::oci::{self, Capabilities, Process};

/// File mode creation mask of a process that names none.
const DEFAULT_UMASK: u32 = 0o022;
/// The AppArmor profile that this thread's next execve enters (proc_pid_attr_exec(5)).
const EXEC_PROFILE: &str = "/proc/thread-self/attr/apparmor/exec";
/// RLIM_INFINITY of the kernel.
const INFINITE: u64 = u64::MAX;

/// Capability names by number (linux/capability.h).
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Writes the process's OOM score adjustment; the agent's own must not be inherited.
///
/// # Errors
///
/// [`StageError::Step`].
pub fn set_oom_score(adjustment: Option<i32>) -> Result<(), StageError> {
    let value = adjustment.unwrap_or(0).to_string();
    std::fs::write("/proc/self/oom_score_adj", value)
        .map_err(StageError::step("set process.oomScoreAdj"))
}

/// Makes the next execve enter an AppArmor profile; none when it is empty. It is asked for while
/// the agent's /proc is there, and this program executes nothing else.
///
/// # Errors
///
/// [`StageError::Step`]; ENOENT when the profile is not loaded.
pub fn enter_profile_at_exec(profile: &str) -> Result<(), StageError> {
    if profile.is_empty() {
        return Ok(());
    }
    std::fs::write(EXEC_PROFILE, format!("exec {profile}")).map_err(StageError::step(format!(
        "set process.apparmorProfile {profile}"
    )))
}

/// Becomes root of the user namespace just joined.
///
/// # Errors
///
/// [`StageError::Step`].
pub fn become_root() -> Result<(), StageError> {
    set_ids(0, 0).map_err(StageError::step("become root of the user namespace"))
}

/// Puts limits, identity and capabilities of `process` in force; `filter` is
/// installed at the moment at which it needs the least from the container's
/// profile: last with no-new-privileges, else just before privileges go.
///
/// # Errors
///
/// [`StageError`] with the setting.
pub fn apply(process: &Process, filter: Option<&super::seccomp::Filter>) -> Result<(), StageError> {
    own_pipes(process.user.uid);
    let umask = process.user.umask.unwrap_or(DEFAULT_UMASK) & 0o777;
    rustix::process::umask(Mode::from_raw_mode(umask));
    for limit in &process.rlimits {
        set_rlimit(limit)?;
    }
    let sets = process
        .capabilities
        .as_ref()
        .map(Sets::parse)
        .unwrap_or_default();
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(StageError::step("set no_new_privs"))?;
    } else if let Some(filter) = filter {
        filter.install()?;
    }
    drop_bounding(sets.bounding).map_err(StageError::step("drop the bounding set"))?;
    become_user(process)?;
    sets.install()
        .map_err(StageError::step("set process.capabilities"))?;
    match filter {
        Some(filter) if process.no_new_privileges => filter.install(),
        _ => Ok(()),
    }
}

/// Becomes a user of a machine, as a login does: root keeps all that it can do, others lose it.
///
/// # Errors
///
/// [`StageError`] with the setting.
pub fn become_machine_user(process: &Process) -> Result<(), StageError> {
    own_pipes(process.user.uid);
    let umask = process.user.umask.unwrap_or(DEFAULT_UMASK) & 0o777;
    rustix::process::umask(Mode::from_raw_mode(umask));
    set_groups(process)?;
    let user = &process.user;
    set_ids(user.uid, user.gid).map_err(StageError::step(format!(
        "become user {}:{}",
        user.uid, user.gid
    )))
}

/// Gives the standard streams that are pipes to the user, who may then open them again by name
/// (`/dev/stdout`). Where that fails, as in a user namespace without the pipes' owner, they still
/// work as they are.
fn own_pipes(uid: u32) {
    let owner = Some(rustix::fs::Uid::from_raw(uid));
    for stream in [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ] {
        let is_pipe = rustix::fs::fstat(stream)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
        if is_pipe {
            let _ = rustix::fs::fchown(stream, owner, None);
        }
    }
}

fn become_user(process: &Process) -> Result<(), StageError> {
    let user = &process.user;
    set_groups(process)?;
    rustix::thread::set_keep_capabilities(true).map_err(StageError::step("keep capabilities"))?;
    set_ids(user.uid, user.gid).map_err(StageError::step(format!(
        "become user {}:{}",
        user.uid, user.gid
    )))?;
    rustix::thread::set_keep_capabilities(false).map_err(StageError::step("keep capabilities"))
}

fn set_groups(process: &Process) -> Result<(), StageError> {
    let groups: Vec<_> = process
        .user
        .additional_gids
        .iter()
        .map(|gid| rustix::fs::Gid::from_raw(*gid))
        .collect();
    rustix::thread::set_thread_groups(&groups)
        .map_err(StageError::step("set process.user.additionalGids"))
}

/// All four ids of this only thread.
fn set_ids(uid: u32, gid: u32) -> io::Result<()> {
    let gid = rustix::fs::Gid::from_raw(gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    let uid = rustix::fs::Uid::from_raw(uid);
    Ok(rustix::thread::set_thread_res_uid(uid, uid, uid)?)
}

/// Capability sets as bits.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Sets {
    bounding: u64,
    effective: u64,
    permitted: u64,
    inheritable: u64,
    ambient: u64,
}

impl Sets {
    /// A name that this kernel does not know is skipped, as runc does.
    fn parse(names: &Capabilities) -> Self {
        Self {
            bounding: bits(&names.bounding),
            effective: bits(&names.effective),
            permitted: bits(&names.permitted),
            inheritable: bits(&names.inheritable),
            ambient: bits(&names.ambient),
        }
    }

    fn install(self) -> io::Result<()> {
        let set = |bits| CapabilitySet::from_bits_retain(bits);
        rustix::thread::set_capabilities(
            None,
            CapabilitySets {
                effective: set(self.effective & self.permitted),
                permitted: set(self.permitted),
                inheritable: set(self.inheritable),
            },
        )?;
        rustix::thread::clear_ambient_capability_set()?;
        // The kernel allows only what is permitted and inheritable.
        let ambient = self.ambient & self.permitted & self.inheritable;
        for number in numbers(ambient) {
            let one = CapabilitySet::from_bits_retain(1 << number);
            rustix::thread::configure_capability_in_ambient_set(one, true)?;
        }
        Ok(())
    }
}

fn bits(names: &[String]) -> u64 {
    let numbers = names
        .iter()
        .filter_map(|name| CAPABILITIES.iter().position(|known| known == name));
    numbers.fold(0, |bits, number| bits | 1 << number)
}

fn numbers(bits: u64) -> impl Iterator<Item = usize> {
    (0..CAPABILITIES.len()).filter(move |number| bits & 1 << number != 0)
}

/// Drops all but `keep` from the bounding set.
fn drop_bounding(keep: u64) -> io::Result<()> {
    for number in numbers(!keep) {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(one) {
            // An older kernel does not know the newest capabilities.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn set_rlimit(limit: &oci::Rlimit) -> Result<(), StageError> {
    let resource = match limit.kind.as_str() {
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_STACK" => Resource::Stack,
        other => {
            return Err(StageError::Unsupported(format!(
                "process.rlimits {other} is unknown"
            )));
        }
    };
    let bound = |value: u64| Some(value).filter(|value| *value != INFINITE);
    let new = Rlimit {
        current: bound(limit.soft),
        maximum: bound(limit.hard),
    };
    rustix::process::setrlimit(resource, new).map_err(StageError::step(format!(
        "set process.rlimits {}",
        limit.kind
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_names_have_the_kernels_numbers() {
        let number = |name: &str| {
            CAPABILITIES
                .iter()
                .position(|known| *known == name)
                .unwrap()
        };
        assert_eq!(
            1_u64 << number("CAP_SYS_ADMIN"),
            CapabilitySet::SYS_ADMIN.bits()
        );
        assert_eq!(
            1_u64 << number("CAP_CHECKPOINT_RESTORE"),
            CapabilitySet::CHECKPOINT_RESTORE.bits()
        );
        assert_eq!(CAPABILITIES.len(), 41);
    }

    #[test]
    fn unknown_capabilities_are_skipped() {
        assert_eq!(
            bits(&["CAP_KILL".to_owned(), "CAP_FUTURE".to_owned()]),
            CapabilitySet::KILL.bits()
        );
    }

    #[test]
    fn no_capabilities_object_means_none_at_all() {
        assert_eq!(
            None.map(|names| Sets::parse(&names)).unwrap_or_default(),
            Sets::default()
        );
    }
}
