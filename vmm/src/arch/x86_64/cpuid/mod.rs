//! What CPUID tells a guest, template version 1: what KVM supports on this host, less what a
//! guest shall not see, or a level that many hosts have; with the machine's own topology.

mod features;
mod leaf;
mod level;
mod topology;
mod vendor;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use thiserror::Error;

use crate::processors::{CpuLevel, CpuModel, Processors, Topology};

/// Version of the template; a saved machine names the one it was built with.
pub const TEMPLATE_VERSION: u32 = 1;

// Leaf 1.
const ECX_VMX: u32 = 1 << 5;
const ECX_PDCM: u32 = 1 << 15;
const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_MTRR: u32 = 1 << 12;

// Leaf 0x8000_0001.
const AMD_ECX_SVM: u32 = 1 << 2;
const AMD_ECX_PERF_CORE: u32 = 1 << 23;
const AMD_EDX_MTRR: u32 = 1 << 12;

/// Why the guest's CPUID could not be made.
#[derive(Debug, Error)]
pub enum CpuidError {
    /// KVM does not say what it supports.
    #[error("KVM_GET_SUPPORTED_CPUID failed")]
    Supported(#[source] kvm_ioctls::Error),
    /// More entries than KVM takes.
    #[error("too many CPUID entries")]
    TooMany,
    /// The host does not have the level.
    #[error("this host cannot run CPU model {level}: it lacks {}", missing.join(", "))]
    Missing {
        /// Which level.
        level: CpuLevel,
        /// What it lacks, by Linux's names.
        missing: Vec<&'static str>,
    },
    /// Levels are made after the processors of known vendors.
    #[error("the host's processor is of an unknown vendor: only CPU model host runs there")]
    Vendor,
}

/// CPUID for the processors of one machine.
pub struct Template {
    entries: Vec<kvm_cpuid_entry2>,
    has_topology: bool,
    topology: Topology,
}

impl Template {
    /// Asks `kvm` what it supports and makes of it what `processors` shall show.
    ///
    /// # Errors
    /// [`CpuidError::Supported`] when KVM does not answer, [`CpuidError::Missing`] when the host
    /// lacks what the model has.
    pub fn for_host(kvm: &Kvm, processors: &Processors) -> Result<Self, CpuidError> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(CpuidError::Supported)?;
        let has_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Self::new(supported.as_slice(), processors, has_deadline)
    }

    fn new(
        supported: &[kvm_cpuid_entry2],
        processors: &Processors,
        has_deadline: bool,
    ) -> Result<Self, CpuidError> {
        let mut entries: Vec<_> = match processors.model {
            CpuModel::Host => supported.to_vec(),
            CpuModel::Level(level) => level::entries(level, supported)?,
        };
        entries.retain(|entry| !topology::is_own(entry.function));
        for entry in &mut entries {
            restrict(entry, has_deadline);
        }
        let shape = processors.topology();
        if shape.threads() > 1 {
            topology::tell_threads(&mut entries);
        }
        let is_told = |entry: &kvm_cpuid_entry2| entry.function == leaf::TOPOLOGY;
        let has_topology = processors.model != CpuModel::Host || supported.iter().any(is_told);
        Ok(Self {
            entries,
            has_topology,
            topology: shape,
        })
    }

    /// The entries for the processor with `apic_id`.
    ///
    /// # Errors
    /// [`CpuidError::TooMany`] when KVM would not take as many.
    pub fn for_vcpu(&self, apic_id: u8) -> Result<CpuId, CpuidError> {
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            topology::place(entry, apic_id, self.topology);
        }
        if self.has_topology {
            entries.extend(topology::levels(apic_id, self.topology));
        }
        CpuId::from_entries(&entries).map_err(|_| CpuidError::TooMany)
    }

    /// Signature and features of the processors: EAX and, in the upper half, EDX of leaf 1.
    #[must_use]
    pub fn processor_id(&self) -> u64 {
        let features = self.entries.iter().find(|e| e.function == leaf::FEATURES);
        features.map_or(0, |entry| u64::from(entry.edx) << 32 | u64::from(entry.eax))
    }
}

/// Takes away nested virtualization and performance counters, which widen what a guest reaches,
/// and memory type ranges: with nested paging they have no effect, their setup takes 130 exits,
/// and Linux sets page attributes without them.
fn restrict(entry: &mut kvm_cpuid_entry2, has_deadline: bool) {
    match entry.function {
        leaf::FEATURES => {
            entry.ecx &= !(ECX_VMX | ECX_PDCM);
            entry.ecx |= ECX_HYPERVISOR | ECX_X2APIC;
            if has_deadline {
                // KVM leaves the bit out since it depends on the in-kernel APIC, which we use.
                entry.ecx |= ECX_TSC_DEADLINE;
            }
            entry.edx &= !EDX_MTRR;
        }
        leaf::AMD_FEATURES => {
            entry.ecx &= !(AMD_ECX_SVM | AMD_ECX_PERF_CORE);
            entry.edx &= !AMD_EDX_MTRR;
        }
        leaf::PERFORMANCE | leaf::AMD_SVM | leaf::AMD_PERFORMANCE => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
