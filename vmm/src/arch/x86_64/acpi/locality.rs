//! Which processors and which memory are close to each other: the system resource affinity table
//! and the system locality information table (ACPI 6.5, 5.2.16 and 5.2.17).

use acpi_tables::sdt::Sdt;
use acpi_tables::slit::SLIT;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::numa::Numa;
use crate::processors::Topology;

const HEADER_LEN: u32 = 36;
const SRAT_REVISION: u8 = 3;

const LOCAL_APIC: u8 = 0;
const MEMORY: u8 = 1;
const ENABLED: u32 = 1;

/// The affinity table.
pub(super) fn affinity(numa: &Numa, topology: Topology) -> Sdt {
    let mut table = Sdt::new(
        *b"SRAT",
        HEADER_LEN,
        SRAT_REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    // Reserved; the first word is 1 for old readers.
    let mut entries = vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (number, node) in (0_u32..).zip(numa.nodes()) {
        for &vcpu in &node.vcpus {
            entries.extend(processor(number, topology.apic_id(vcpu)));
        }
    }
    for piece in numa.memory() {
        let number = u32::try_from(piece.node).unwrap_or(u32::MAX);
        entries.extend(memory(number, piece.range.base, piece.range.len));
    }
    table.append_slice(&entries);
    table
}

fn processor(node: u32, apic_id: u8) -> [u8; 16] {
    let [low, middle, high, highest] = node.to_le_bytes();
    let [flags, ..] = ENABLED.to_le_bytes();
    let mut entry = [0; 16];
    let start = [
        LOCAL_APIC, 16, low, apic_id, flags, 0, 0, 0, 0, middle, high, highest,
    ];
    for (to, from) in entry.iter_mut().zip(start) {
        *to = from;
    }
    entry
}

fn memory(node: u32, base: u64, len: u64) -> Vec<u8> {
    let mut entry = vec![MEMORY, 40];
    entry.extend(node.to_le_bytes());
    entry.extend([0; 2]);
    entry.extend(base.to_le_bytes());
    entry.extend(len.to_le_bytes());
    entry.extend([0; 4]);
    entry.extend(ENABLED.to_le_bytes());
    entry.extend([0; 8]);
    entry
}

/// The table of distances.
pub(super) fn distances(numa: &Numa) -> SLIT {
    let count = u32::try_from(numa.nodes().len()).unwrap_or(u32::MAX);
    let mut table = SLIT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, count);
    for (from, node) in numa.nodes().iter().enumerate() {
        for (to, &distance) in node.distances.iter().enumerate().skip(from + 1) {
            table.set_distance(from, to, distance);
        }
    }
    table
}
