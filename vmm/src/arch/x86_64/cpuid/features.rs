//! Processor features by name, and what a level of the x86-64 psABI takes of them.

use kvm_bindings::kvm_cpuid_entry2;

use super::leaf;
use crate::processors::CpuLevel;

/// A register of a CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// What a level does with a feature. What is not in the table, no level has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// All levels have it: what 64-bit kernels take for granted. Nothing that only 16-bit programs
    /// want (`vme`): not every host has that.
    Always,
    /// Levels from this one on have it.
    From(CpuLevel),
    /// Given as the host has it: mitigations of processor bugs, which a guest cannot do without
    /// where they are needed, and the hypervisor's own offers.
    AsHost,
}

/// One bit.
struct Feature {
    name: &'static str,
    leaf: u32,
    register: Register,
    bit: u32,
    need: Need,
}

/// Some bits of one register.
struct Group(u32, Register, &'static [(u32, &'static str, Need)]);

use CpuLevel::{V2, V3, V4};
use Need::{Always, AsHost, From};
use Register::{Eax, Ebx, Ecx, Edx};

/// Names are Linux's (/proc/cpuinfo).
const GROUPS: &[Group] = &[
    Group(
        leaf::FEATURES,
        Edx,
        &[
            (0, "fpu", Always),
            (2, "de", Always),
            (3, "pse", Always),
            (4, "tsc", Always),
            (5, "msr", Always),
            (6, "pae", Always),
            (7, "mce", Always),
            (8, "cx8", Always),
            (9, "apic", Always),
            (11, "sep", Always),
            (13, "pge", Always),
            (14, "mca", Always),
            (15, "cmov", Always),
            (16, "pat", Always),
            (17, "pse36", Always),
            (19, "clflush", Always),
            (23, "mmx", Always),
            (24, "fxsr", Always),
            (25, "sse", Always),
            (26, "sse2", Always),
        ],
    ),
    Group(
        leaf::FEATURES,
        Ecx,
        &[
            (0, "pni", From(V2)),
            (9, "ssse3", From(V2)),
            (12, "fma", From(V3)),
            (13, "cx16", From(V2)),
            (19, "sse4_1", From(V2)),
            (20, "sse4_2", From(V2)),
            (22, "movbe", From(V3)),
            (23, "popcnt", From(V2)),
            (26, "xsave", From(V3)),
            (28, "avx", From(V3)),
            (29, "f16c", From(V3)),
        ],
    ),
    Group(
        leaf::EXTENDED_FEATURES,
        Ebx,
        &[
            (3, "bmi1", From(V3)),
            (5, "avx2", From(V3)),
            (8, "bmi2", From(V3)),
            (16, "avx512f", From(V4)),
            (17, "avx512dq", From(V4)),
            (28, "avx512cd", From(V4)),
            (30, "avx512bw", From(V4)),
            (31, "avx512vl", From(V4)),
        ],
    ),
    Group(
        leaf::EXTENDED_FEATURES,
        Edx,
        &[
            (10, "md_clear", AsHost),
            (26, "spec_ctrl", AsHost),
            (27, "intel_stibp", AsHost),
            (28, "flush_l1d", AsHost),
            (31, "spec_ctrl_ssbd", AsHost),
        ],
    ),
    Group(leaf::POWER, Eax, &[(2, "arat", AsHost)]),
    Group(
        leaf::AMD_FEATURES,
        Ecx,
        &[(0, "lahf_lm", From(V2)), (5, "abm", From(V3))],
    ),
    Group(
        leaf::AMD_FEATURES,
        Edx,
        &[
            (11, "syscall", Always),
            (20, "nx", Always),
            (29, "lm", Always),
        ],
    ),
    Group(
        leaf::AMD_SIZES,
        Ebx,
        &[
            (12, "ibpb", AsHost),
            (14, "ibrs", AsHost),
            (15, "stibp", AsHost),
            (17, "stibp_always_on", AsHost),
            (24, "ssbd", AsHost),
            (25, "virt_ssbd", AsHost),
        ],
    ),
    Group(
        leaf::KVM_FEATURES,
        Eax,
        &[
            (0, "kvmclock", AsHost),
            (1, "kvm_nopiodelay", AsHost),
            (3, "kvmclock2", AsHost),
            (4, "kvm_asyncpf", AsHost),
            (5, "kvm_steal_time", AsHost),
            (6, "kvm_pv_eoi", AsHost),
            (7, "kvm_pv_unhalt", AsHost),
            (9, "kvm_pv_tlb_flush", AsHost),
            (10, "kvm_asyncpf_vmexit", AsHost),
            (11, "kvm_pv_ipi", AsHost),
            (12, "kvm_poll_control", AsHost),
            (13, "kvm_pv_sched_yield", AsHost),
            (14, "kvm_asyncpf_int", AsHost),
            (24, "kvmclock_stable", AsHost),
        ],
    ),
];

fn all() -> impl Iterator<Item = Feature> {
    let of_group = |&Group(leaf, register, bits): &Group| {
        bits.iter().map(move |&(bit, name, need)| Feature {
            name,
            leaf,
            register,
            bit,
            need,
        })
    };
    GROUPS.iter().flat_map(of_group)
}

impl Feature {
    fn is_in(&self, host: &[kvm_cpuid_entry2]) -> bool {
        let mut leaves = host
            .iter()
            .filter(|e| e.function == self.leaf && e.index == 0);
        leaves.any(|entry| *self.register.of(&mut entry.clone()) >> self.bit & 1 == 1)
    }

    fn is_required(&self, level: CpuLevel) -> bool {
        match self.need {
            Always => true,
            From(first) => first <= level,
            AsHost => false,
        }
    }
}

impl Register {
    fn of(self, entry: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Eax => &mut entry.eax,
            Ebx => &mut entry.ebx,
            Ecx => &mut entry.ecx,
            Edx => &mut entry.edx,
        }
    }
}

/// What `level` needs and `host` lacks.
pub(super) fn missing(level: CpuLevel, host: &[kvm_cpuid_entry2]) -> Vec<&'static str> {
    let required = all().filter(|feature| feature.is_required(level));
    let lacking = required.filter(|feature| !feature.is_in(host));
    lacking.map(|feature| feature.name).collect()
}

/// Sets the features of `level` in `entry`, the first of its leaf.
pub(super) fn set(level: CpuLevel, host: &[kvm_cpuid_entry2], entry: &mut kvm_cpuid_entry2) {
    let function = entry.function;
    for feature in all().filter(|feature| feature.leaf == function) {
        let given = feature.need == AsHost && feature.is_in(host);
        if given || feature.is_required(level) {
            *feature.register.of(entry) |= 1 << feature.bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_is_named_once() {
        let mut places: Vec<_> = all().map(|f| (f.leaf, f.register as u8, f.bit)).collect();
        places.sort_unstable();
        let count = places.len();
        places.dedup();
        assert_eq!(places.len(), count);
        let mut names: Vec<_> = all().map(|f| f.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn each_level_has_what_the_psabi_lists() {
        let added = |level| {
            let of_level = all().filter(|f| f.need == From(level));
            of_level.map(|f| f.name).collect::<Vec<_>>()
        };
        let sorted = |mut names: Vec<&'static str>| {
            names.sort_unstable();
            names
        };
        let v2 = [
            "cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3",
        ];
        let v3 = [
            "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave",
        ];
        let v4 = ["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"];
        assert_eq!(sorted(added(V2)), v2);
        assert_eq!(sorted(added(V3)), v3);
        assert_eq!(sorted(added(V4)), v4);
    }
}
