//! What CPUID tells a guest, template version 1: what KVM supports on this host, less what a
//! guest shall not see, with the machine's own topology.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use thiserror::Error;

use crate::config::Vcpus;

/// Version of the template; a saved machine names the one it was built with.
pub const TEMPLATE_VERSION: u32 = 1;

// Leaf numbers (Intel SDM vol. 2, CPUID; AMD APM vol. 3, appendix E).
const LEAF_FEATURES: u32 = 0x1;
const LEAF_CACHES: u32 = 0x4;
const LEAF_PERFORMANCE: u32 = 0xa;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_AMD_FEATURES: u32 = 0x8000_0001;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_SVM: u32 = 0x8000_000a;
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;
const LEAF_AMD_PERFORMANCE: u32 = 0x8000_0022;

// Leaf 1.
const ECX_VMX: u32 = 1 << 5;
const ECX_PDCM: u32 = 1 << 15;
const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_MTRR: u32 = 1 << 12;
const EDX_HTT: u32 = 1 << 28;

// Leaf 0x8000_0001.
const AMD_ECX_CMP_LEGACY: u32 = 1 << 1;
const AMD_ECX_SVM: u32 = 1 << 2;
const AMD_ECX_PERF_CORE: u32 = 1 << 23;
const AMD_EDX_MTRR: u32 = 1 << 12;

/// Levels of the topology leaves.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Why the guest's CPUID could not be made.
#[derive(Debug, Error)]
pub enum CpuidError {
    /// KVM does not say what it supports.
    #[error("KVM_GET_SUPPORTED_CPUID failed")]
    Supported(#[source] kvm_ioctls::Error),
    /// More entries than KVM takes.
    #[error("too many CPUID entries")]
    TooMany,
}

/// CPUID for the processors of one machine.
pub struct Template {
    entries: Vec<kvm_cpuid_entry2>,
    has_topology: bool,
    vcpus: Vcpus,
}

impl Template {
    /// Asks `kvm` what it supports and takes away what guests shall not see.
    ///
    /// # Errors
    /// [`CpuidError::Supported`] when KVM does not answer.
    pub fn for_host(kvm: &Kvm, vcpus: Vcpus) -> Result<Self, CpuidError> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(CpuidError::Supported)?;
        let has_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self::new(supported.as_slice(), vcpus, has_deadline))
    }

    fn new(supported: &[kvm_cpuid_entry2], vcpus: Vcpus, has_deadline: bool) -> Self {
        let mut entries: Vec<_> = supported
            .iter()
            .copied()
            .filter(|e| !is_own(e.function))
            .collect();
        for entry in &mut entries {
            restrict(entry, has_deadline);
        }
        let has_topology = supported
            .iter()
            .any(|entry| entry.function == LEAF_TOPOLOGY);
        Self {
            entries,
            has_topology,
            vcpus,
        }
    }

    /// The entries for the processor with `apic_id`.
    ///
    /// # Errors
    /// [`CpuidError::TooMany`] when KVM would not take as many.
    pub fn for_vcpu(&self, apic_id: u8) -> Result<CpuId, CpuidError> {
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            place(entry, apic_id, self.vcpus);
        }
        if self.has_topology {
            entries.extend(topology(LEAF_TOPOLOGY, apic_id, self.vcpus));
        }
        CpuId::from_entries(&entries).map_err(|_| CpuidError::TooMany)
    }
}

/// Leaves that describe the host's topology; ours replace them.
fn is_own(leaf: u32) -> bool {
    matches!(leaf, LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2)
}

/// Takes away nested virtualization and performance counters, which widen what a guest reaches,
/// and memory type ranges: with nested paging they have no effect, their setup takes 130 exits,
/// and Linux sets page attributes without them.
fn restrict(entry: &mut kvm_cpuid_entry2, has_deadline: bool) {
    match entry.function {
        LEAF_FEATURES => {
            entry.ecx &= !(ECX_VMX | ECX_PDCM);
            entry.ecx |= ECX_HYPERVISOR | ECX_X2APIC;
            if has_deadline {
                // KVM leaves the bit out since it depends on the in-kernel APIC, which we use.
                entry.ecx |= ECX_TSC_DEADLINE;
            }
            entry.edx &= !EDX_MTRR;
        }
        LEAF_AMD_FEATURES => {
            entry.ecx &= !(AMD_ECX_SVM | AMD_ECX_PERF_CORE);
            entry.edx &= !AMD_EDX_MTRR;
        }
        LEAF_PERFORMANCE | LEAF_AMD_SVM | LEAF_AMD_PERFORMANCE => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        _ => {}
    }
}

/// Writes the processor's number and the machine's shape into an entry: one socket, one
/// thread per core, caches up to the second level per core, the last one shared by all.
fn place(entry: &mut kvm_cpuid_entry2, apic_id: u8, vcpus: Vcpus) {
    let id = u32::from(apic_id);
    let last = u32::from(vcpus.get()) - 1;
    match entry.function {
        LEAF_FEATURES => {
            entry.ebx = (entry.ebx & 0xffff) | (id << 24) | ((last + 1) << 16);
            entry.edx = with_bit(entry.edx, EDX_HTT, last > 0);
        }
        LEAF_CACHES if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 0x7;
            let sharing = if level >= 3 { last } else { 0 };
            let cores = last.min(0x3f);
            entry.eax = (entry.eax & 0x3fff) | (sharing.min(0xfff) << 14) | (cores << 26);
        }
        LEAF_AMD_FEATURES => entry.ecx = with_bit(entry.ecx, AMD_ECX_CMP_LEGACY, last > 0),
        LEAF_AMD_SIZES => entry.ecx = (core_bits(vcpus) << 12) | last,
        LEAF_AMD_CACHES if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 0x7;
            let sharing = if level >= 3 { last } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | (sharing << 14);
        }
        LEAF_AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (id, id, 0, 0),
        _ => {}
    }
}

fn with_bit(value: u32, bit: u32, set: bool) -> u32 {
    if set { value | bit } else { value & !bit }
}

/// Bits of an APIC ID that number a core within its socket.
fn core_bits(vcpus: Vcpus) -> u32 {
    u32::from(vcpus.get()).next_power_of_two().trailing_zeros()
}

/// The extended topology leaf's levels: threads in a core, cores in the socket, end.
fn topology(leaf: u32, apic_id: u8, vcpus: Vcpus) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, kind: u32, shift: u32, count: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        edx: u32::from(apic_id),
        ..kvm_cpuid_entry2::default()
    };
    [
        level(0, LEVEL_SMT, 0, 1),
        level(1, LEVEL_CORE, core_bits(vcpus), u32::from(vcpus.get())),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Vec<kvm_cpuid_entry2> {
        let entry = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..kvm_cpuid_entry2::default()
        };
        vec![
            entry(LEAF_FEATURES, 0),
            entry(LEAF_PERFORMANCE, 0),
            entry(LEAF_TOPOLOGY, 0),
            entry(LEAF_TOPOLOGY_V2, 0),
            entry(LEAF_AMD_FEATURES, 0),
            entry(LEAF_AMD_SIZES, 0),
            entry(LEAF_AMD_TOPOLOGY, 0),
        ]
    }

    fn entries(vcpus: u32, apic_id: u8) -> Vec<kvm_cpuid_entry2> {
        let template = Template::new(&host(), Vcpus::try_from(vcpus).unwrap(), true);
        template.for_vcpu(apic_id).unwrap().as_slice().to_vec()
    }

    fn leaf(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries
            .iter()
            .find(|e| e.function == function && e.index == index)
            .unwrap()
    }

    #[test]
    fn nested_virtualization_and_counters_are_hidden() {
        let entries = entries(1, 0);
        assert_eq!(
            leaf(&entries, LEAF_FEATURES, 0).ecx & (ECX_VMX | ECX_PDCM),
            0
        );
        assert_eq!(leaf(&entries, LEAF_AMD_FEATURES, 0).ecx & AMD_ECX_SVM, 0);
        assert_eq!(leaf(&entries, LEAF_PERFORMANCE, 0).eax, 0);
    }

    #[test]
    fn every_processor_finds_its_own_number() {
        for apic_id in [0, 1, 5, 253] {
            let entries = entries(254, apic_id);
            let id = u32::from(apic_id);
            assert_eq!(leaf(&entries, LEAF_FEATURES, 0).ebx >> 24, id);
            assert_eq!(leaf(&entries, LEAF_TOPOLOGY, 1).edx, id);
            assert_eq!(leaf(&entries, LEAF_AMD_TOPOLOGY, 0).eax, id);
        }
    }

    #[test]
    fn topology_has_one_socket_with_all_cores() {
        for (vcpus, bits) in [(1, 0), (2, 1), (3, 2), (8, 3), (254, 8)] {
            let entries = entries(vcpus, 0);
            let cores = leaf(&entries, LEAF_TOPOLOGY, 1);
            assert_eq!((cores.eax, cores.ebx), (bits, vcpus));
            assert_eq!(
                leaf(&entries, LEAF_AMD_SIZES, 0).ecx,
                bits << 12 | (vcpus - 1)
            );
            assert!(entries.iter().all(|e| e.function != LEAF_TOPOLOGY_V2));
        }
    }
}
