//! CPUID of a level of the x86-64 psABI. It is made up here, not taken from the host, so that a
//! guest finds the same processor on every host that has the level. The exceptions are what
//! cannot be made up: the vendor, where extended state lies, the mitigations of bugs, and what
//! the host's KVM offers.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::topology::AMD_ECX_TOPOEXT;
use super::vendor::Vendor;
use super::{CpuidError, features, leaf};
use crate::processors::CpuLevel;

// Extended state (Intel SDM vol. 1, 13.1).
const STATE_X87: u32 = 1 << 0;
const STATE_SSE: u32 = 1 << 1;
const STATE_AVX: u32 = 1 << 2;
const STATE_AVX512: u32 = 0b111 << 5;
/// Legacy area and header.
const STATE_MIN_LEN: u32 = 512 + 64;

/// Bits of leaf 1 that AMD repeats, less the memory type ranges; every level has them.
const AMD_EDX_REPEATED: u32 = 0x0183_e3ff;

/// Physical address bits: what every host offers and the memory map lies within.
const PHYSICAL_BITS: u32 = 39;
const LINEAR_BITS: u32 = 48;
/// Quadwords of a cache line, as leaf 1 tells.
const CLFLUSH_QUADWORDS: u32 = 8;

/// A cache: how leaves 4 and 0x8000_001d describe it.
struct Cache {
    /// 1 data, 2 instructions, 3 both.
    kind: u32,
    level: u32,
    ways: u32,
    sets: u32,
}

/// 32 KiB each for data and instructions, 512 KiB, 16 MiB.
const CACHES: [Cache; 4] = [
    Cache {
        kind: 1,
        level: 1,
        ways: 8,
        sets: 64,
    },
    Cache {
        kind: 2,
        level: 1,
        ways: 8,
        sets: 64,
    },
    Cache {
        kind: 3,
        level: 2,
        ways: 8,
        sets: 1024,
    },
    Cache {
        kind: 3,
        level: 3,
        ways: 16,
        sets: 16384,
    },
];

/// Family, model and stepping: those of the first server processor of the vendor that had the
/// level and whose bugs a guest guards against on any later one.
fn signature(vendor: Vendor, level: CpuLevel) -> u32 {
    match (vendor, level) {
        // Westmere-EP, Haswell-EP, Skylake-SP.
        (Vendor::Intel, CpuLevel::V2) => 0x0002_06c2,
        (Vendor::Intel, CpuLevel::V3) => 0x0003_06f2,
        (Vendor::Intel, CpuLevel::V4) => 0x0005_0654,
        // Rome, since Linux takes features away from older families by their number; Genoa.
        (Vendor::Amd, CpuLevel::V2 | CpuLevel::V3) => 0x0083_0f10,
        (Vendor::Amd, CpuLevel::V4) => 0x00a1_0f11,
    }
}

/// The entries of `level` on a host whose KVM supports `host`.
pub(super) fn entries(
    level: CpuLevel,
    host: &[kvm_cpuid_entry2],
) -> Result<Vec<kvm_cpuid_entry2>, CpuidError> {
    let missing = features::missing(level, host);
    if !missing.is_empty() {
        return Err(CpuidError::Missing { level, missing });
    }
    let vendor = Vendor::of(host).ok_or(CpuidError::Vendor)?;
    let mut entries = vec![
        leaf(leaf::FEATURES, [signature(vendor, level), 0, 0, 0]),
        leaf(leaf::POWER, [0; 4]),
        leaf(leaf::EXTENDED_FEATURES, [0; 4]),
        leaf(leaf::AMD_FEATURES, [0; 4]),
        leaf(leaf::AMD_SIZES, [PHYSICAL_BITS | LINEAR_BITS << 8, 0, 0, 0]),
        leaf(leaf::KVM_FEATURES, [0; 4]),
    ];
    for entry in &mut entries {
        features::set(level, host, entry);
        match (entry.function, vendor) {
            (leaf::FEATURES, _) => entry.ebx = CLFLUSH_QUADWORDS << 8,
            (leaf::AMD_FEATURES, Vendor::Amd) => {
                entry.ecx |= AMD_ECX_TOPOEXT;
                entry.edx |= AMD_EDX_REPEATED;
            }
            _ => {}
        }
    }
    let caches = match vendor {
        Vendor::Intel => leaf::CACHES,
        Vendor::Amd => {
            entries.push(leaf(leaf::AMD_TOPOLOGY, [0; 4]));
            leaf::AMD_CACHES
        }
    };
    entries.extend(
        (0..)
            .zip(&CACHES)
            .map(|(index, cache)| cache.entry(caches, index)),
    );
    let state = state(level);
    if state != 0 {
        entries.extend(state_entries(state, host));
    }
    entries.extend(brand(level));
    entries.extend(host.iter().filter(|e| e.function == leaf::KVM_MAX));
    entries.extend(maxima(&entries, host));
    Ok(entries)
}

fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    let flags = match function {
        leaf::EXTENDED_FEATURES | leaf::STATE | leaf::CACHES | leaf::AMD_CACHES => {
            KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        }
        _ => 0,
    };
    kvm_cpuid_entry2 {
        function,
        flags,
        eax,
        ebx,
        ecx,
        edx,
        ..kvm_cpuid_entry2::default()
    }
}

impl Cache {
    fn entry(&self, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let self_initializing = 1 << 8;
        let line_len = 64;
        let eax = self.kind | self.level << 5 | self_initializing;
        let ebx = (line_len - 1) | (self.ways - 1) << 22;
        kvm_cpuid_entry2 {
            index,
            ..leaf(function, [eax, ebx, self.sets - 1, 0])
        }
    }
}

/// Parts of the extended state that a guest may switch on.
fn state(level: CpuLevel) -> u32 {
    match level {
        CpuLevel::V2 => 0,
        CpuLevel::V3 => STATE_X87 | STATE_SSE | STATE_AVX,
        CpuLevel::V4 => STATE_X87 | STATE_SSE | STATE_AVX | STATE_AVX512,
    }
}

/// Sizes and places of these parts are the host's.
fn state_entries(state: u32, host: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
    let is_part = |entry: &&kvm_cpuid_entry2| {
        entry.function == leaf::STATE
            && matches!(entry.index, 2..32)
            && state >> entry.index & 1 == 1
    };
    let parts: Vec<_> = host.iter().filter(is_part).copied().collect();
    let end = |part: &kvm_cpuid_entry2| part.eax.saturating_add(part.ebx);
    let len = parts.iter().map(end).max().unwrap_or(STATE_MIN_LEN);
    let first = leaf(leaf::STATE, [state, STATE_MIN_LEN, len, 0]);
    let second = kvm_cpuid_entry2 {
        index: 1,
        ..leaf(leaf::STATE, [0; 4])
    };
    [first, second].into_iter().chain(parts).collect()
}

/// The name that `/proc/cpuinfo` shows.
fn brand(level: CpuLevel) -> Vec<kvm_cpuid_entry2> {
    let mut name = format!("Podvisor {level}").into_bytes();
    name.resize(48, 0);
    let words = name.chunks_exact(4).map(|word| {
        let bytes = word.first_chunk().copied().unwrap_or_default();
        u32::from_le_bytes(bytes)
    });
    let words: Vec<_> = words.collect();
    let registers = words.chunks_exact(4).filter_map(|four| four.first_chunk());
    (leaf::BRAND..)
        .zip(registers)
        .map(|(function, registers)| leaf(function, *registers))
        .collect()
}

/// The leaves that tell the highest of their range. The topology leaf is added later.
fn maxima(entries: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
    let highest = |range: std::ops::Range<u32>| {
        let functions = entries.iter().map(|entry| entry.function);
        functions
            .filter(|f| range.contains(f))
            .max()
            .unwrap_or_default()
    };
    let basic = highest(0..leaf::KVM_MAX).max(leaf::TOPOLOGY);
    let extended = highest(leaf::EXTENDED_MAX..u32::MAX);
    let of_host = |entry: &kvm_cpuid_entry2| {
        let eax = match entry.function {
            leaf::MAX => basic,
            leaf::EXTENDED_MAX => extended,
            _ => return None,
        };
        Some(leaf(entry.function, [eax, entry.ebx, entry.ecx, entry.edx]))
    };
    host.iter().filter_map(of_host).collect()
}
