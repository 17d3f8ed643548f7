//! What a container's `linux.resources` means in a machine: limits go to the guest's cgroups as
//! they are, but a limit that the machine can never reach is refused, and the host's CPU numbers
//! mean something on the host only.

use oci_spec::runtime::{LinuxCpu, LinuxResources};
use thiserror::Error;

use super::cpu_set::{CpuSet, CpuSetError};
use super::sizing::{DEFAULT_CPU_PERIOD_US, Size, mib};

/// A guest has one memory node.
const GUEST_MEMORY_NODES: u32 = 1;

/// Resources that a container of this machine cannot have.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ResourcesError {
    /// More memory than the machine has.
    #[error(
        "resources.limits.memory of {} is more than the {} of the pod's VM, which cannot grow that far while it runs: \
         podvisor.io/max-memory gives it room",
        mib(*.limit), mib(*.guest)
    )]
    Memory {
        /// The limit in bytes.
        limit: u64,
        /// Guest memory in bytes.
        guest: u64,
    },
    /// More CPU time than the machine has processors for.
    #[error(
        "resources.limits.cpu of {}m is more than the pod's VM gives with {vcpus} CPUs, which cannot grow that far while it runs: \
         podvisor.io/max-cpus gives it room",
        .millicpus
    )]
    Cpu {
        /// The limit in thousandths of a CPU.
        millicpus: u64,
        /// The machine's processors.
        vcpus: u32,
    },
    /// A list of CPUs or memory nodes makes no sense.
    #[error("linux.resources.cpu.{field}")]
    CpuSet {
        /// Which list.
        field: &'static str,
        /// What is wrong with it.
        source: CpuSetError,
    },
    /// The message is no OCI resources.
    #[error("linux.resources: {0}")]
    Json(String),
}

/// What a container is given of its pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// The CPUs of the host on which it may run; None for all.
    pub host_cpus: Option<CpuSet>,
    /// Its limit in thousandths of a CPU; None for none.
    pub limit_millicpus: Option<u64>,
    /// Its weight among all that want CPU time.
    pub cpu_shares: Option<u64>,
    /// Its memory limit in bytes; None for none.
    pub memory: Option<u64>,
}

impl Share {
    /// What `resources` give.
    ///
    /// # Errors
    /// [`ResourcesError::CpuSet`].
    pub fn of(resources: &LinuxResources) -> Result<Self, ResourcesError> {
        let cpu = resources.cpu().as_ref();
        let cpus = cpu.and_then(|cpu| cpu.cpus().as_deref());
        Ok(Self {
            host_cpus: set("cpus", cpus)?,
            limit_millicpus: cpu.and_then(limit_millicpus),
            cpu_shares: cpu.and_then(|cpu| cpu.shares()),
            memory: memory_limit(resources),
        })
    }

    /// Whether it has a CPU limit above that of `before`.
    pub fn has_more_cpu_than(&self, before: &Self) -> bool {
        match (before.limit_millicpus, self.limit_millicpus) {
            (Some(before), Some(now)) => now > before,
            _ => false,
        }
    }
}

/// Resources as containerd sends them (JSON).
///
/// # Errors
/// [`ResourcesError::Json`].
pub fn parse(json: &[u8]) -> Result<LinuxResources, ResourcesError> {
    serde_json::from_slice(json).map_err(|e| ResourcesError::Json(e.to_string()))
}

/// Resources as the guest gets them.
#[derive(Clone, Debug, PartialEq)]
pub struct GuestResources {
    /// What goes to the guest's cgroup.
    pub resources: LinuxResources,
    /// What they give.
    pub share: Share,
}

impl GuestResources {
    /// Fits the resources of a container that is created into a machine. A CPU limit beyond the
    /// machine, which has no more processors than its host, is no promise and stays.
    ///
    /// # Errors
    /// [`ResourcesError`].
    pub fn of_new(mut resources: LinuxResources, size: Size) -> Result<Self, ResourcesError> {
        check_memory(&resources, size)?;
        let share = Share::of(&resources)?;
        if let Some(cpu) = resources.cpu_mut() {
            translate_sets(cpu, share.host_cpus.as_ref(), size)?;
        }
        Ok(Self { resources, share })
    }

    /// Fits changed resources of a container that had `before` into its machine. A CPU limit that is
    /// raised beyond the machine is refused: it would have no effect.
    ///
    /// # Errors
    /// [`ResourcesError`].
    pub fn of_update(
        resources: LinuxResources,
        size: Size,
        before: &Share,
    ) -> Result<Self, ResourcesError> {
        let fitted = Self::of_new(resources, size)?;
        let vcpus = u32::from(size.vcpus.get());
        match fitted.share.limit_millicpus {
            Some(millicpus)
                if fitted.share.has_more_cpu_than(before)
                    && millicpus > u64::from(vcpus) * 1000 =>
            {
                Err(ResourcesError::Cpu { millicpus, vcpus })
            }
            _ => Ok(fitted),
        }
    }

    /// The guest's part as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        // Maps with string keys, lists, strings and numbers: all of it is JSON.
        serde_json::to_vec(&self.resources).unwrap_or_default()
    }
}

fn memory_limit(resources: &LinuxResources) -> Option<u64> {
    let limit = resources.memory().as_ref()?.limit()?;
    u64::try_from(limit).ok().filter(|limit| *limit > 0)
}

fn check_memory(resources: &LinuxResources, size: Size) -> Result<(), ResourcesError> {
    let guest = size.memory.bytes();
    match memory_limit(resources) {
        Some(limit) if limit > guest => Err(ResourcesError::Memory { limit, guest }),
        _ => Ok(()),
    }
}

fn limit_millicpus(cpu: &LinuxCpu) -> Option<u64> {
    let quota = u64::try_from(cpu.quota()?)
        .ok()
        .filter(|quota| *quota > 0)?;
    let period = cpu.period().filter(|period| *period > 0);
    Some(quota.saturating_mul(1000) / period.unwrap_or(DEFAULT_CPU_PERIOD_US))
}

/// A list of CPUs or memory nodes; None when it is empty.
fn set(field: &'static str, text: Option<&str>) -> Result<Option<CpuSet>, ResourcesError> {
    let text = text.map(str::trim).filter(|text| !text.is_empty());
    text.map(str::parse::<CpuSet>)
        .transpose()
        .map_err(|source| ResourcesError::CpuSet { field, source })
}

/// Takes the sets that name what only the host has out of `cpu`, whose CPUs are `cpus`.
///
/// The numbers are the host's. A guest that has CPUs of all these numbers confines the container
/// to its own ones, so that it counts as many as with runc; another guest does not confine it.
/// Either way the host confines the machine to the CPUs. It does not confine it to the memory
/// nodes (of the kubelet's static memory manager): a machine's memory is near its processors with
/// `podvisor.io/numa`.
fn translate_sets(
    cpu: &mut LinuxCpu,
    cpus: Option<&CpuSet>,
    size: Size,
) -> Result<(), ResourcesError> {
    let mems = set("mems", cpu.mems().as_deref())?;
    if cpus.is_some_and(|cpus| !cpus.is_within(size.vcpus.get().into())) {
        cpu.set_cpus(None);
    }
    if mems.is_some_and(|mems| !mems.is_within(GUEST_MEMORY_NODES)) {
        cpu.set_mems(None);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(json: &str, vcpus: u32) -> Result<GuestResources, ResourcesError> {
        let before = Share {
            limit_millicpus: Some(500),
            ..Share::default()
        };
        GuestResources::of_update(parse(json.as_bytes())?, Size::of(vcpus, 256), &before)
    }

    #[test]
    fn a_limit_beyond_the_machine_is_refused_with_the_numbers() {
        let error = update(r#"{"memory":{"limit":1073741824}}"#, 1).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("1024 MiB") && text.contains("256 MiB"),
            "{text}"
        );
        let raised = r#"{"cpu":{"quota":150000,"period":100000}}"#;
        let text = update(raised, 1).unwrap_err().to_string();
        assert!(text.contains("1500m") && text.contains("1 CPUs"), "{text}");
        assert!(update(raised, 2).is_ok());
    }

    #[test]
    fn a_cpu_limit_that_is_not_raised_may_be_beyond_the_machine() {
        let four: LinuxResources =
            serde_json::from_str(r#"{"cpu":{"quota":400000,"period":100000}}"#).unwrap();
        let created = GuestResources::of_new(four.clone(), Size::of(1, 256)).unwrap();
        assert_eq!(created.share.limit_millicpus, Some(4000));
        assert!(GuestResources::of_update(four.clone(), Size::of(1, 256), &created.share).is_ok());
        // From no limit to one.
        assert!(GuestResources::of_update(four, Size::of(1, 256), &Share::default()).is_ok());
    }

    #[test]
    fn no_limit_is_no_limit() {
        for none in [r#"{"memory":{"limit":-1},"cpu":{"quota":-1}}"#, "{}"] {
            assert_eq!(update(none, 1).unwrap().share, Share::default());
        }
    }

    #[test]
    fn sets_that_only_the_host_has_stay_on_the_host() {
        let fitted = update(r#"{"cpu":{"cpus":"0-1","mems":"0"}}"#, 2).unwrap();
        assert_eq!(fitted.share.host_cpus.unwrap().to_string(), "0-1");
        let cpu = fitted.resources.cpu().clone().unwrap();
        assert_eq!(cpu.cpus().as_deref(), Some("0-1"));
        assert_eq!(cpu.mems().as_deref(), Some("0"));

        let fitted = update(r#"{"cpu":{"cpus":"4-5","mems":"1"}}"#, 2).unwrap();
        assert_eq!(fitted.share.host_cpus.unwrap().to_string(), "4-5");
        let cpu = fitted.resources.cpu().clone().unwrap();
        assert_eq!((cpu.cpus(), cpu.mems()), (&None, &None));

        let error = update(r#"{"cpu":{"cpus":"some"}}"#, 2).unwrap_err();
        assert_eq!(error.to_string(), "linux.resources.cpu.cpus");
    }
}
