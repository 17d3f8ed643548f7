//! `linux.resources` of the OCI runtime specification.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::OciError;

/// Limits of a container's cgroup. Absent means unlimited, or unchanged in an
/// update.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resources {
    /// Which device nodes may be used; later rules win.
    #[serde(default)]
    pub devices: Vec<DeviceRule>,
    /// Memory limits.
    pub memory: Option<Memory>,
    /// CPU limits.
    pub cpu: Option<Cpu>,
    /// Limit of processes and threads.
    pub pids: Option<Pids>,
    /// Limits of huge pages.
    #[serde(default)]
    pub hugepage_limits: Vec<HugepageLimit>,
    /// Files of the cgroup, written as they are.
    #[serde(default)]
    pub unified: BTreeMap<String, String>,
}

impl Resources {
    /// Whether the last word on devices allows all that can be done to any, as
    /// for a privileged container.
    #[must_use]
    pub fn allows_every_device(&self) -> bool {
        let everything = |rule: &DeviceRule| {
            rule.allow
                && matches!(rule.kind.as_str(), "" | "a")
                && rule.major.is_none_or(|major| major == -1)
                && rule.minor.is_none_or(|minor| minor == -1)
                && ["", "rwm"].contains(&rule.access.as_str())
        };
        self.devices.last().is_some_and(everything)
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    ///
    /// [`OciError::Unsupported`] with the field.
    pub fn check(&self) -> Result<(), OciError> {
        let fail = |field, reason| Err(OciError::Unsupported { field, reason });
        if self
            .unified
            .keys()
            .any(|name| name.contains('/') || name.starts_with("cgroup."))
        {
            return fail(
                "linux.resources.unified",
                "names a file that is not a controller's",
            );
        }
        if let Some(memory) = &self.memory
            && memory.disable_oom_killer.unwrap_or(false)
        {
            return fail(
                "linux.resources.memory.disableOOMKiller",
                "does not exist in cgroup v2",
            );
        }
        if let Some(cpu) = &self.cpu
            && (cpu.realtime_runtime.unwrap_or(0) != 0 || cpu.realtime_period.unwrap_or(0) != 0)
        {
            return fail(
                "linux.resources.cpu.realtimeRuntime",
                "does not exist in cgroup v2",
            );
        }
        Ok(())
    }
}

/// One rule of the device list.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRule {
    /// Allow or deny.
    pub allow: bool,
    /// `a` (all), `c` or `b`; empty is all.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// Major number; absent or -1 is any.
    pub major: Option<i64>,
    /// Minor number; absent or -1 is any.
    pub minor: Option<i64>,
    /// Some of `r`, `w`, `m`.
    #[serde(default)]
    pub access: String,
}

/// Memory limits in bytes; -1 means none.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Memory {
    // Knobs of cgroup v1 that have no successor and whose absence is harmless.
    #[serde(default, rename = "kernel")]
    _kernel: IgnoredAny,
    #[serde(default, rename = "kernelTCP")]
    _kernel_tcp: IgnoredAny,
    #[serde(default, rename = "swappiness")]
    _swappiness: IgnoredAny,
    #[serde(default, rename = "useHierarchy")]
    _use_hierarchy: IgnoredAny,
    #[serde(default, rename = "checkBeforeUpdate")]
    _check_before_update: IgnoredAny,
    /// Hard limit.
    pub limit: Option<i64>,
    /// Protection under pressure.
    pub reservation: Option<i64>,
    /// Memory and swap together.
    pub swap: Option<i64>,
    /// cgroup v1 only.
    #[serde(rename = "disableOOMKiller")]
    pub disable_oom_killer: Option<bool>,
}

/// CPU limits.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cpu {
    /// Relative weight as in cgroup v1, 2..262144.
    pub shares: Option<u64>,
    /// Microseconds of CPU time in a period; -1 means no limit.
    pub quota: Option<i64>,
    /// Microseconds that may be saved up for a burst.
    pub burst: Option<u64>,
    /// Length of the period in microseconds.
    pub period: Option<u64>,
    /// cgroup v1 only.
    pub realtime_runtime: Option<i64>,
    /// cgroup v1 only.
    pub realtime_period: Option<u64>,
    /// CPUs, as a list like `0-1,3`.
    #[serde(default)]
    pub cpus: String,
    /// Memory nodes, as such a list.
    #[serde(default)]
    pub mems: String,
    /// 1 to run only when nothing else does.
    pub idle: Option<i64>,
}

/// Limit of tasks.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pids {
    /// Greatest number; 0 or less means none.
    #[serde(default)]
    pub limit: i64,
}

/// Limit of huge pages of one size.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HugepageLimit {
    /// As in the cgroup's file names: `2MB`, `1GB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}
