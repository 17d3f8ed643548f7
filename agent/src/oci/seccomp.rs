//! `linux.seccomp` of the OCI runtime specification.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::OciError;

/// A system call filter.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Seccomp {
    // Only read by a notification agent, which needs listenerPath.
    #[serde(default, rename = "listenerMetadata")]
    _listener_metadata: IgnoredAny,
    /// What happens to a call that no rule names (`SCMP_ACT_…`).
    pub default_action: String,
    /// errno of the default action.
    pub default_errno_ret: Option<u32>,
    // `SCMP_ARCH_…`: the guest has its native one alone.
    #[serde(default, rename = "architectures")]
    _architectures: IgnoredAny,
    /// `SECCOMP_FILTER_FLAG_…`.
    #[serde(default)]
    pub flags: Vec<String>,
    /// Socket of a notification agent; not supported.
    #[serde(default)]
    pub listener_path: String,
    /// The rules.
    #[serde(default)]
    pub syscalls: Vec<SeccompRule>,
}

impl Seccomp {
    /// Checks what the types do not.
    ///
    /// # Errors
    ///
    /// [`OciError::Unsupported`] with the field.
    pub fn check(&self) -> Result<(), OciError> {
        let actions = self
            .syscalls
            .iter()
            .map(|rule| &rule.action)
            .chain([&self.default_action]);
        if !self.listener_path.is_empty()
            || actions.into_iter().any(|name| name == "SCMP_ACT_NOTIFY")
        {
            return Err(OciError::Unsupported {
                field: "linux.seccomp",
                reason: "asks for a notification agent, which a guest cannot reach",
            });
        }
        Ok(())
    }
}

/// What happens to some system calls.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SeccompRule {
    // Written by some tools for people to read.
    #[serde(default, rename = "comment")]
    _comment: IgnoredAny,
    /// Their names; names the architecture does not have are skipped.
    pub names: Vec<String>,
    /// `SCMP_ACT_…`.
    pub action: String,
    /// errno of SCMP_ACT_ERRNO, data of SCMP_ACT_TRACE.
    pub errno_ret: Option<u32>,
    /// Conditions on arguments.
    #[serde(default)]
    pub args: Vec<SeccompArg>,
}

/// A condition on one argument of a system call.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SeccompArg {
    /// Which argument, 0..5.
    pub index: u32,
    /// Compared value, or the mask of SCMP_CMP_MASKED_EQ.
    pub value: u64,
    /// Compared value of SCMP_CMP_MASKED_EQ.
    #[serde(default)]
    pub value_two: u64,
    /// `SCMP_CMP_…`.
    pub op: String,
}
