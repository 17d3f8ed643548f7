//! How large a pod's machine is: its containers' limits and what the guest itself takes.

use podvisor_annotations::value::memory::Hugepages;
use podvisor_annotations::{Annotations, Key};
use podvisor_vmm::{MemoryBacking, MemorySize, Vcpus};
use thiserror::Error;

use super::bundle::Limits;

// What guests and servers take was measured by `cargo xtask bench memory` (docs/benchmarks.md); what
// is beyond the measured values is the margin for what an idle pod does not show.

/// What kernel, initial image and agent take of a guest, in bytes, whatever its size: 30 MiB idle,
/// and as much as half of it again for the stream and network buffers of a busy one.
const GUEST_BASE: u64 = 46 << 20;
/// What each processor takes of a guest, in bytes.
const GUEST_PER_VCPU: u64 = 1 << 20;
/// The part of a guest that its kernel takes to manage it: 64 bytes for each page of 4096, hash
/// tables, and the reserve for allocations that cannot wait.
const GUEST_SHARE: u64 = 32;
/// What the server takes outside of guest memory, in bytes: 7 MiB idle, kernel memory included, and
/// room for requests in flight.
const HOST_BASE: u64 = 12 << 20;
/// The part of guest memory that page tables take on the host: an entry of 8 bytes for each page of
/// 4096, in the server's tables and in the machine's.
const PAGE_TABLE_SHARE: u64 = 256;
/// With a smaller limit not even one container's processes start, in bytes.
pub(super) const MIN_LIMIT: u64 = 8 << 20;
/// A page, in bytes.
const PAGE_LEN: u64 = 4096;
/// Guest memory comes in whole large pages, in bytes.
const GRANULE: u64 = 2 << 20;
/// containerd's and the kernel's period where none is given, in microseconds.
pub const DEFAULT_CPU_PERIOD_US: u64 = 100_000;

/// The size of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Processors.
    pub vcpus: Vcpus,
    /// Guest memory.
    pub memory: MemorySize,
}

#[cfg(test)]
impl Size {
    /// So many processors and MiB of memory.
    pub fn of(vcpus: u32, memory_mib: u64) -> Self {
        Self {
            vcpus: Vcpus::try_from(vcpus).unwrap(),
            memory: MemorySize::from_bytes(memory_mib << 20).unwrap(),
        }
    }
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
    /// The most that the pod asks for is less than what its machine begins with.
    #[error("{key}: {most} is less than the {booted} that the pod's VM begins with")]
    MostBelowBooted {
        /// The annotation.
        key: Key,
        /// What it says.
        most: String,
        /// What there is.
        booted: String,
    },
    /// Memory from a pool does not grow.
    #[error(
        "podvisor.io/max-memory: a VM whose memory comes from a pool of huge pages cannot grow; \
         podvisor.io/hugepages can be thp or none"
    )]
    Pool,
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
        mib(.memory + .beside), mib(*.memory), mib(*.beside), mib(*.cgroup_max)
    )]
    CgroupTooSmall {
        /// Guest memory that is the cgroup's, in bytes.
        memory: u64,
        /// What the machine takes beside its memory, in bytes.
        beside: u64,
        /// `memory.max` of the pod's cgroup in bytes.
        cgroup_max: u64,
    },
    /// The pod's cgroup keeps the machine from its huge pages.
    #[error(
        "podvisor.io/hugepages: the VM's memory of {} are pages of {hugepages}, and the pod's cgroup allows {} of them: \
         a container's resources.limits.hugepages-{hugepages} must be as much",
        mib(*.memory), mib(*.pool_max)
    )]
    PoolTooSmall {
        /// The pages' size, as the annotation says it.
        hugepages: Hugepages,
        /// Guest memory in bytes.
        memory: u64,
        /// `hugetlb.<size>.max` of the pod's cgroup in bytes.
        pool_max: u64,
    },
}

impl Size {
    /// As much of each as the larger of both has.
    pub fn max(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.max(other.vcpus),
            memory: self.memory.max(other.memory),
        }
    }

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
        let vcpus = vcpus(limits, annotations, host_cpus);
        let memory = match annotations.memory {
            Some(memory) => {
                let limit = memory.bytes();
                MemorySize::from_bytes(limit).map_err(|_| SizeError::TooLarge { limit })?
            }
            None => guest_memory(limits.memory.unwrap_or(default_memory), vcpus)?,
        };
        Ok(Self { vcpus, memory })
    }

    /// The size of a machine that boots its own disk: all of the limit is its own system's.
    ///
    /// # Errors
    /// [`SizeError::TooSmall`], [`SizeError::TooLarge`].
    pub fn of_machine(
        limits: Limits,
        annotations: &Annotations,
        default_memory: u64,
        host_cpus: u32,
    ) -> Result<Self, SizeError> {
        let limit = limits.memory.unwrap_or(default_memory);
        let memory = match annotations.memory {
            Some(memory) => memory.bytes(),
            None if limit < MemorySize::MIN => return Err(SizeError::TooSmall { limit }),
            None => limit - limit % PAGE_LEN,
        };
        let memory = MemorySize::from_bytes(memory);
        Ok(Self {
            vcpus: vcpus(limits, annotations, host_cpus),
            memory: memory.map_err(|_| SizeError::TooLarge { limit })?,
        })
    }

    /// Makes sure that the machine fits its pod's cgroup, whose `memory.max` is `cgroup_max` bytes. Pages of a
    /// pool are not charged there (Documentation/admin-guide/cgroup-v2.rst, hugetlb).
    ///
    /// # Errors
    /// [`SizeError::CgroupTooSmall`].
    pub fn check_cgroup(
        &self,
        backing: MemoryBacking,
        cgroup_max: Option<u64>,
    ) -> Result<(), SizeError> {
        let beside = host_overhead(self.memory.bytes());
        let memory = if backing.is_pool() {
            0
        } else {
            self.memory.bytes()
        };
        match cgroup_max {
            Some(cgroup_max) if memory.saturating_add(beside) > cgroup_max => {
                Err(SizeError::CgroupTooSmall {
                    memory,
                    beside,
                    cgroup_max,
                })
            }
            _ => Ok(()),
        }
    }

    /// Makes sure that the pod's cgroup, which may have `pool_max` bytes of these pages, lets the machine have
    /// them. A kubelet allows none to a pod that does not ask for any.
    ///
    /// # Errors
    /// [`SizeError::PoolTooSmall`].
    pub fn check_pool(&self, hugepages: Hugepages, pool_max: Option<u64>) -> Result<(), SizeError> {
        let memory = self.memory.bytes();
        match pool_max {
            Some(pool_max) if memory > pool_max => Err(SizeError::PoolTooSmall {
                hugepages,
                memory,
                pool_max,
            }),
            _ => Ok(()),
        }
    }
}

/// What a machine with `memory` bytes takes beside them.
fn host_overhead(memory: u64) -> u64 {
    HOST_BASE + memory / PAGE_TABLE_SHARE
}

/// Memory of a guest with `vcpus` in which containers can use `limit` bytes.
pub(super) fn guest_memory(limit: u64, vcpus: Vcpus) -> Result<MemorySize, SizeError> {
    if limit < MIN_LIMIT {
        return Err(SizeError::TooSmall { limit });
    }
    let too_large = || SizeError::TooLarge { limit };
    let base = GUEST_BASE + GUEST_PER_VCPU * u64::from(vcpus.get());
    let with_base = limit.checked_add(base).ok_or_else(too_large)?;
    let bytes = with_base
        .checked_add(with_base / (GUEST_SHARE - 1))
        .ok_or_else(too_large)?;
    let bytes = bytes
        .checked_next_multiple_of(GRANULE)
        .ok_or_else(too_large)?;
    MemorySize::from_bytes(bytes).map_err(|_| too_large())
}

/// The annotation's number, or the CPU limit rounded up.
fn vcpus(limits: Limits, annotations: &Annotations, host_cpus: u32) -> Vcpus {
    let given = annotations.cpus.map(|cpus| u32::from(cpus.get()));
    given
        .and_then(|cpus| Vcpus::try_from(cpus).ok())
        .unwrap_or_else(|| processors(limits, host_cpus))
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
pub fn mib(bytes: u64) -> String {
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
        let check = |backing, max| machine.check_cgroup(backing, max);
        assert_eq!(check(MemoryBacking::Normal, None), Ok(()));
        assert_eq!(check(MemoryBacking::Normal, Some(1 << 30)), Ok(()));
        let too_small = Some(128 << 20);
        assert_eq!(check(MemoryBacking::HugePages2Mi, too_small), Ok(()));
        let error = check(MemoryBacking::Normal, too_small).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("128 MiB") && error.contains("podFixed"),
            "{error}"
        );
    }

    #[test]
    fn a_machine_that_may_not_have_its_huge_pages_is_refused_with_the_numbers() {
        let machine = Size::of(1, 128);
        for allowed in [None, Some(128 << 20)] {
            assert_eq!(machine.check_pool(Hugepages::Mi2, allowed), Ok(()));
        }
        let error = machine.check_pool(Hugepages::Mi2, Some(0)).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("128 MiB are pages of 2Mi") && error.contains("limits.hugepages-2Mi"),
            "{error}"
        );
    }

    #[test]
    fn a_guest_grows_with_the_limit_and_its_processors() {
        let mib = |memory_mib: u64, cpus: u64| {
            let limits = Limits {
                memory: Some(memory_mib << 20),
                cpu_quota_us: Some(cpus * 100_000),
                cpu_period_us: Some(100_000),
            };
            size(limits).unwrap().memory.bytes() >> 20
        };
        assert_eq!(mib(128, 1), 182);
        assert_eq!(mib(1024, 1), 1106);
        assert_eq!(mib(1024, 4), 1110);
    }

    #[test]
    fn annotations_win() {
        let annotations = Annotations {
            cpus: Some("3".parse().unwrap()),
            memory: Some("64Mi".parse().unwrap()),
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
