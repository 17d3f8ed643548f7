//! `process` of the OCI runtime specification (config.md, "Process").

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::OciError;

/// What a container, or an exec in it, runs.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Process {
    // The terminal and its size travel beside the specification.
    #[serde(default, rename = "terminal")]
    _terminal: IgnoredAny,
    #[serde(default, rename = "consoleSize")]
    _console_size: IgnoredAny,
    // The guest has no SELinux.
    #[serde(default, rename = "selinuxLabel")]
    _selinux_label: IgnoredAny,
    /// Identity.
    pub user: User,
    /// Argument vector; the first is looked up in the environment's PATH.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment, `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// Capability sets; none means no capability at all.
    pub capabilities: Option<Capabilities>,
    /// Resource limits.
    #[serde(default)]
    pub rlimits: Vec<Rlimit>,
    /// Whether execve may not grant privileges (prctl(2), PR_SET_NO_NEW_PRIVS).
    #[serde(default)]
    pub no_new_privileges: bool,
    /// AppArmor profile entered with execve. A container's holds for its execs as well: what an
    /// exec names was not translated from the host.
    #[serde(default)]
    pub apparmor_profile: String,
    /// Written to oom_score_adj; 0 when absent.
    pub oom_score_adj: Option<i32>,
}

impl Process {
    /// Checks what the types do not.
    ///
    /// # Errors
    ///
    /// [`OciError::Unsupported`] with the field.
    pub fn check(&self) -> Result<(), OciError> {
        let fail = |field, reason| Err(OciError::Unsupported { field, reason });
        if self.args.is_empty() {
            return fail("process.args", "is empty");
        }
        if !self.cwd.starts_with('/') {
            return fail("process.cwd", "is not an absolute path");
        }
        if self
            .args
            .iter()
            .chain(&self.env)
            .any(|text| text.contains('\0'))
        {
            return fail("process.args or process.env", "contains a NUL byte");
        }
        Ok(())
    }
}

/// User and groups of a process.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct User {
    #[serde(default, rename = "username")]
    _username: IgnoredAny,
    /// User id in the container.
    #[serde(default)]
    pub uid: u32,
    /// Group id in the container.
    #[serde(default)]
    pub gid: u32,
    /// File mode creation mask; 0o022 when absent.
    pub umask: Option<u32>,
    /// Supplementary groups.
    #[serde(default)]
    pub additional_gids: Vec<u32>,
}

/// Capability sets, by name (`CAP_…`, capabilities(7)).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Capabilities {
    /// Upper bound of what execve can grant.
    #[serde(default)]
    pub bounding: Vec<String>,
    /// In force.
    #[serde(default)]
    pub effective: Vec<String>,
    /// Kept over execve when the file has them inheritable.
    #[serde(default)]
    pub inheritable: Vec<String>,
    /// What the effective set may hold.
    #[serde(default)]
    pub permitted: Vec<String>,
    /// Kept over execve of an ordinary file.
    #[serde(default)]
    pub ambient: Vec<String>,
}

/// One resource limit (getrlimit(2)).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rlimit {
    /// `RLIMIT_…`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}
