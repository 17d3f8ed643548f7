//! How large a pod's machine is: its containers' limits and what the guest itself takes.

use podvisor_vmm::{MemorySize, Vcpus};
use thiserror::Error;

use super::bundle::Limits;
use crate::annotations::Annotations;

/// What kernel, initial image and agent take of a guest, in bytes, whatever its size.
const GUEST_BASE: u64 = 56 << 20;
/// The kernel describes each page of 4096 bytes by 64.
const PAGE_STRUCT_SHARE: u64 = 64;
/// What the server takes outside of guest memory, page tables included, in bytes.
const HOST_OVERHEAD: u64 = 16 << 20;
/// With a smaller limit not even one container's processes start, in bytes.
const MIN_LIMIT: u64 = 8 << 20;
/// Guest memory comes in whole large pages, in bytes.
const GRANULE: u64 = 2 << 20;
/// containerd's and the kernel's period where none is given, in microseconds.
const DEFAULT_CPU_PERIOD_US: u64 = 100_000;

/// The size of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Processors.
    pub vcpus: Vcpus,
    /// Guest memory.
    pub memory: MemorySize,
}

/// Limits that no machine fits.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SizeError {
    /// The limit is below what a container needs.
    #[error("the pod's memory limit of {} is too small for a VM pod: the least is {}", mib(*.limit), mib(MIN_LIMIT))]
    TooSmall {
        /// The limit in bytes.
        limit: u64,
    },
    /// More memory than a machine can have.
    #[error("no machine has the memory for a limit of {}", mib(*.limit))]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The pod's cgroup would kill the machine.
    #[error(
        "the VM needs {} ({} of guest memory and {} beside it) but the pod's cgroup allows {}: \
         does the RuntimeClass have its overhead.podFixed?",
        mib(.memory + HOST_OVERHEAD), mib(*.memory), mib(HOST_OVERHEAD), mib(*.cgroup_max)
    )]
    CgroupTooSmall {
        /// Guest memory in bytes.
        memory: u64,
        /// `memory.max` of the pod's cgroup in bytes.
        cgroup_max: u64,
    },
}

impl Size {
    /// The size for a pod with `limits`; `default_memory` (bytes) stands for a missing limit, and no
    /// machine has more processors than the host's `host_cpus`.
    ///
    /// # Errors
    /// [`SizeError::TooSmall`], [`SizeError::TooLarge`].
    pub fn of_pod(
        limits: Limits,
        annotations: &Annotations,
        default_memory: u64,
        host_cpus: u32,
    ) -> Result<Self, SizeError> {
        let memory = match annotations.memory {
            Some(memory) => memory,
            None => guest_memory(limits.memory.unwrap_or(default_memory))?,
        };
        let vcpus = annotations
            .cpus
            .unwrap_or_else(|| processors(limits, host_cpus));
        Ok(Self { vcpus, memory })
    }

    /// Makes sure that the machine fits its pod's cgroup, whose `memory.max` is `cgroup_max` bytes.
    ///
    /// # Errors
    /// [`SizeError::CgroupTooSmall`].
    pub fn check_cgroup(&self, cgroup_max: Option<u64>) -> Result<(), SizeError> {
        let memory = self.memory.bytes();
        match cgroup_max {
            Some(cgroup_max) if memory.saturating_add(HOST_OVERHEAD) > cgroup_max => {
                Err(SizeError::CgroupTooSmall { memory, cgroup_max })
            }
            _ => Ok(()),
        }
    }
}

/// Guest memory in which containers can use `limit` bytes.
fn guest_memory(limit: u64) -> Result<MemorySize, SizeError> {
    if limit < MIN_LIMIT {
        return Err(SizeError::TooSmall { limit });
    }
    let too_large = || SizeError::TooLarge { limit };
    let with_base = limit.checked_add(GUEST_BASE).ok_or_else(too_large)?;
    let bytes = with_base
        .checked_add(with_base / PAGE_STRUCT_SHARE)
        .ok_or_else(too_large)?;
    let bytes = bytes
        .checked_next_multiple_of(GRANULE)
        .ok_or_else(too_large)?;
    MemorySize::from_bytes(bytes).map_err(|_| too_large())
}

/// The CPU limit rounded up; one without a limit.
fn processors(limits: Limits, host_cpus: u32) -> Vcpus {
    let period = limits.cpu_period_us.unwrap_or(DEFAULT_CPU_PERIOD_US).max(1);
    let wanted = limits
        .cpu_quota_us
        .map_or(1, |quota| quota.div_ceil(period));
    let most = u64::from(host_cpus.clamp(1, Vcpus::MAX.into()));
    let count = u32::try_from(wanted.clamp(1, most)).unwrap_or(1);
    Vcpus::try_from(count).unwrap_or(Vcpus::MIN)
}

/// A size for people: whole MiB, rounded up.
fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEFAULT_MEMORY: u64 = 512 << 20;

    fn size(limits: Limits) -> Result<Size, SizeError> {
        Size::of_pod(limits, &Annotations::default(), DEFAULT_MEMORY, 4)
    }

    #[test]
    fn cpus_are_the_limit_rounded_up_and_at_most_the_hosts() {
        let cpus = |quota: Option<u64>| {
            let limits = Limits {
                cpu_quota_us: quota,
                cpu_period_us: Some(100_000),
                memory: None,
            };
            size(limits).unwrap().vcpus.get()
        };
        assert_eq!(cpus(None), 1);
        assert_eq!(cpus(Some(50_000)), 1);
        assert_eq!(cpus(Some(200_000)), 2);
        assert_eq!(cpus(Some(200_001)), 3);
        assert_eq!(cpus(Some(9_900_000)), 4);
    }

    #[test]
    fn a_limit_too_small_is_refused_with_both_numbers() {
        let error = size(Limits {
            memory: Some(4 << 20),
            ..Limits::default()
        })
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("4 MiB") && error.contains("8 MiB"),
            "{error}"
        );
    }

    #[test]
    fn a_machine_that_its_cgroup_would_kill_is_refused_with_the_numbers() {
        let machine = size(Limits {
            memory: Some(128 << 20),
            ..Limits::default()
        })
        .unwrap();
        assert_eq!(machine.check_cgroup(None), Ok(()));
        assert_eq!(machine.check_cgroup(Some(1 << 30)), Ok(()));
        let error = machine
            .check_cgroup(Some(128 << 20))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("128 MiB") && error.contains("podFixed"),
            "{error}"
        );
    }

    #[test]
    fn annotations_win() {
        let annotations = Annotations {
            cpus: Some(Vcpus::try_from(3).unwrap()),
            memory: Some(MemorySize::from_bytes(64 << 20).unwrap()),
            ..Annotations::default()
        };
        let size = Size::of_pod(Limits::default(), &annotations, DEFAULT_MEMORY, 1).unwrap();
        assert_eq!((size.vcpus.get(), size.memory.bytes()), (3, 64 << 20));
    }

    proptest! {
        #[test]
        fn every_limit_fits_or_is_refused(memory: u64, quota: u64, period: u64) {
            let limits = Limits {
                memory: Some(memory), cpu_quota_us: Some(quota), cpu_period_us: Some(period),
            };
            if let Ok(size) = size(limits) {
                prop_assert!(size.memory.bytes() > memory);
                prop_assert!((1..=4).contains(&size.vcpus.get()));
            }
        }
    }
}
