//! Where a processor is in its machine, as CPUID tells it.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::leaf;
use super::vendor::Vendor;
use crate::processors::Topology;

// Leaf 1.
const EDX_HTT: u32 = 1 << 28;

// Leaf 0x8000_0001.
const AMD_ECX_CMP_LEGACY: u32 = 1 << 1;
pub(super) const AMD_ECX_TOPOEXT: u32 = 1 << 22;

/// Levels of the topology leaf.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Leaves that describe the host's topology. Ours replace the first; the others have nothing
/// to add to it.
pub(super) fn is_own(function: u32) -> bool {
    matches!(
        function,
        leaf::TOPOLOGY | leaf::TOPOLOGY_V2 | leaf::AMD_TOPOLOGY_V2
    )
}

/// Makes AMD's processors tell of threads: Linux believes no other leaf of theirs.
pub(super) fn tell_threads(entries: &mut Vec<kvm_cpuid_entry2>) {
    if Vendor::of(entries) != Some(Vendor::Amd) {
        return;
    }
    for entry in entries.iter_mut() {
        match entry.function {
            leaf::EXTENDED_MAX => entry.eax = entry.eax.max(leaf::AMD_TOPOLOGY),
            leaf::AMD_FEATURES => entry.ecx |= AMD_ECX_TOPOEXT,
            _ => {}
        }
    }
    if entries.iter().all(|e| e.function != leaf::AMD_TOPOLOGY) {
        entries.push(kvm_cpuid_entry2 {
            function: leaf::AMD_TOPOLOGY,
            ..kvm_cpuid_entry2::default()
        });
    }
}

/// Writes the processor's number and the machine's shape into an entry. Caches up to the second
/// level belong to a core, the last one to a socket.
pub(super) fn place(entry: &mut kvm_cpuid_entry2, apic_id: u8, topology: Topology) {
    let id = u32::from(apic_id);
    let (threads, cores) = (u32::from(topology.threads()), u32::from(topology.cores()));
    let in_socket = topology.socket_threads();
    let sharing = |eax: u32| {
        let level = eax >> 5 & 0x7;
        let sharers = if level >= 3 { in_socket } else { threads };
        sharers - 1
    };
    let has_type = entry.eax & 0x1f != 0;
    match entry.function {
        leaf::FEATURES => {
            entry.ebx = (entry.ebx & 0xffff) | (id << 24) | (in_socket << 16);
            entry.edx = with_bit(entry.edx, EDX_HTT, in_socket > 1);
        }
        leaf::CACHES if has_type => {
            let cores = (cores - 1).min(0x3f);
            entry.eax = (entry.eax & 0x3fff) | (sharing(entry.eax) << 14) | (cores << 26);
        }
        leaf::AMD_FEATURES => {
            entry.ecx = with_bit(entry.ecx, AMD_ECX_CMP_LEGACY, in_socket > 1);
        }
        leaf::AMD_SIZES => entry.ecx = (topology.socket_bits() << 12) | (in_socket - 1),
        leaf::AMD_CACHES if has_type => {
            entry.eax = (entry.eax & 0x3fff) | (sharing(entry.eax) << 14);
        }
        leaf::AMD_TOPOLOGY => {
            let socket = id >> topology.socket_bits();
            let core = (id - (socket << topology.socket_bits())) >> topology.thread_bits();
            entry.eax = id;
            entry.ebx = core | (threads - 1) << 8;
            (entry.ecx, entry.edx) = (socket, 0);
        }
        _ => {}
    }
}

fn with_bit(value: u32, bit: u32, set: bool) -> u32 {
    if set { value | bit } else { value & !bit }
}

/// The extended topology leaf's levels: threads in a core, threads in the socket, end.
pub(super) fn levels(apic_id: u8, topology: Topology) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, kind: u32, shift: u32, count: u32| kvm_cpuid_entry2 {
        function: leaf::TOPOLOGY,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        edx: u32::from(apic_id),
        ..kvm_cpuid_entry2::default()
    };
    let threads = u32::from(topology.threads());
    [
        level(0, LEVEL_SMT, topology.thread_bits(), threads),
        level(
            1,
            LEVEL_CORE,
            topology.socket_bits(),
            topology.socket_threads(),
        ),
        level(2, 0, 0, 0),
    ]
}
