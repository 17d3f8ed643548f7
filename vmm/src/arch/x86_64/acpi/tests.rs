use super::*;
use crate::config::MemorySize;
use crate::memory::MemoryBacking;
use crate::numa::NumaNode;

const BASE: u64 = 0xe_0000;

fn cores(vcpus: u32) -> AcpiProcessors {
    (&Processors::from(Vcpus::try_from(vcpus).unwrap())).into()
}

/// A machine with processors only.
fn bare(processors: AcpiProcessors) -> AcpiConfig {
    AcpiConfig {
        processors,
        has_pci: false,
        has_serial: false,
        has_button: false,
        has_generation: false,
        numa: None,
    }
}

fn table(config: &AcpiConfig, name: &str) -> Option<Vec<u8>> {
    let mut tables = reachable(&build(config, &booted(config), BASE)).into_iter();
    tables
        .find(|(found, _)| found == name)
        .map(|(_, bytes)| bytes)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn tables(vcpus: u32, has_pci: bool) -> Vec<u8> {
    let config = AcpiConfig {
        has_pci,
        has_serial: true,
        has_button: true,
        ..bare(cores(vcpus))
    };
    build(&config, &booted(&config), BASE)
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn table_at(bytes: &[u8], address: u64) -> &[u8] {
    let start = usize::try_from(address - BASE).unwrap();
    let len = u32_at(bytes, start + 4) as usize;
    &bytes[start..start + len]
}

fn sum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

/// Every table reachable from the root pointer, by signature.
fn reachable(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    assert_eq!(&bytes[..8], b"RSD PTR ");
    assert_eq!(sum(&bytes[..20]), 0);
    assert_eq!(sum(&bytes[..36]), 0);
    let xsdt = table_at(bytes, u64_at(bytes, 24));
    let mut found: Vec<_> = xsdt[36..]
        .chunks_exact(8)
        .map(|e| table_at(bytes, u64_at(e, 0)))
        .collect();
    let fadt = found.iter().find(|t| t.starts_with(b"FACP")).unwrap();
    found.push(table_at(bytes, u64_at(fadt, 140)));
    found.push(xsdt);
    found
        .iter()
        .map(|t| (String::from_utf8_lossy(&t[..4]).into_owned(), t.to_vec()))
        .collect()
}

#[test]
fn all_tables_are_reachable_and_sum_to_zero() {
    let tables = reachable(&tables(4, true));
    let names: Vec<_> = tables.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["FACP", "APIC", "MCFG", "DSDT", "XSDT"]);
    for (name, bytes) in &tables {
        assert_eq!(sum(bytes), 0, "{name}");
    }
}

#[test]
fn a_machine_without_pci_has_no_configuration_window() {
    assert!(
        reachable(&tables(1, false))
            .iter()
            .all(|(name, _)| name != "MCFG")
    );
}

#[test]
fn the_largest_machine_fits_its_place() {
    let bytes = tables(u32::from(Vcpus::MAX), true);
    assert!(bytes.len() as u64 <= layout::ACPI_TABLES.len);
    let (_, madt) = reachable(&bytes)
        .into_iter()
        .find(|(name, _)| name == "APIC")
        .unwrap();
    assert_eq!(madt.len(), 44 + 8 * 254 + 12);
}

#[test]
fn the_ioapic_is_there_only_for_devices_with_lines() {
    let madt_len = |config: &AcpiConfig| table(config, "APIC").unwrap().len();
    let without = AcpiConfig {
        has_pci: true,
        ..bare(cores(1))
    };
    assert_eq!(madt_len(&without), 44 + 8);
    let with = AcpiConfig {
        has_generation: true,
        ..bare(cores(1))
    };
    assert_eq!(madt_len(&with), 44 + 8 + 12);
}

#[test]
fn processors_have_the_apic_ids_of_their_topology() {
    let topology: Topology = "2:3:1".parse().unwrap();
    let processors = Processors::new(Vcpus::try_from(6).unwrap(), topology).unwrap();
    let madt = table(&bare((&processors).into()), "APIC").unwrap();
    let listed: Vec<_> = madt[44..].chunks_exact(8).map(|e| (e[2], e[3])).collect();
    assert_eq!(listed, [(0, 0), (1, 1), (2, 2), (3, 4), (4, 5), (5, 6)]);
}

#[test]
fn the_event_device_reports_for_the_devices_there_are() {
    let button = AcpiConfig {
        has_button: true,
        ..bare(cores(1))
    };
    let generation = AcpiConfig {
        has_generation: true,
        ..bare(cores(1))
    };
    for (config, parts) in [
        (bare(cores(1)), [false, false, false]),
        (button, [true, true, false]),
        (generation, [true, false, true]),
    ] {
        let dsdt = table(&config, "DSDT").unwrap();
        let found = [b"ACPI0013".as_slice(), b"PWRB", b"VM_Gen_Counter"];
        assert_eq!(found.map(|part| contains(&dsdt, part)), parts);
    }
}

#[test]
fn nodes_have_all_processors_and_memory_and_their_distances() {
    let topology: Topology = "2:3:1".parse().unwrap();
    let processors = Processors::new(Vcpus::try_from(4).unwrap(), topology).unwrap();
    let node = |memory_len, vcpus: &[u8], distances: &[u8]| NumaNode {
        memory_len,
        vcpus: vcpus.to_vec(),
        host_node: None,
        distances: distances.to_vec(),
    };
    let nodes = vec![
        node(2 << 30, &[0, 1, 2], &[10, 21]),
        node(2 << 30, &[3, 4, 5], &[21, 10]),
    ];
    let memory = MemorySize::from_bytes(4 << 30).unwrap();
    let numa = Numa::new(nodes, memory, MemoryBacking::Normal, &processors).unwrap();
    let config = AcpiConfig {
        numa: Some(numa),
        ..bare((&processors).into())
    };
    let srat = table(&config, "SRAT").unwrap();
    assert_eq!(sum(&srat), 0);
    let (cpus, memory) = srat[48..].split_at(6 * 16);
    let cpus: Vec<_> = cpus
        .chunks_exact(16)
        .map(|e| (e[0], e[1], e[2], e[3], e[4]))
        .collect();
    let expected = [(0, 0), (0, 1), (0, 2), (1, 4), (1, 5), (1, 6)];
    assert_eq!(cpus, expected.map(|(node, id)| (0, 16, node, id, 1)));
    let ranges: Vec<_> = memory
        .chunks_exact(40)
        .map(|e| {
            (
                e[0],
                u32_at(e, 2),
                u64_at(e, 8) >> 30,
                u64_at(e, 16) >> 30,
                u32_at(e, 28),
            )
        })
        .collect();
    assert_eq!(ranges, [(1, 0, 0, 2, 1), (1, 1, 2, 1, 1), (1, 1, 4, 1, 1)]);
    let slit = table(&config, "SLIT").unwrap();
    assert_eq!(sum(&slit), 0);
    assert_eq!((u64_at(&slit, 36), &slit[44..]), (2, &[10, 21, 21, 10][..]));
    assert!(table(&bare(cores(2)), "SRAT").is_none());
}

/// The processors of a machine that begins.
fn booted(config: &AcpiConfig) -> Vec<bool> {
    vec![true; config.processors.booted.get().into()]
}

fn growing(booted: u32, possible: u32) -> AcpiConfig {
    let topology = Topology::new(1, possible, 1).unwrap();
    let processors = Processors::new(Vcpus::try_from(booted).unwrap(), topology).unwrap();
    bare((&processors).into())
}

#[test]
fn processors_that_can_come_are_listed_and_have_devices() {
    let config = growing(2, 4);
    let madt = table(&config, "APIC").unwrap();
    let flags: Vec<_> = madt[44..76].chunks_exact(8).map(|e| u32_at(e, 4)).collect();
    assert_eq!(flags, [1, 1, 2, 2], "enabled, or online capable");
    let dsdt = table(&config, "DSDT").unwrap();
    for name in [
        b"ACPI0010".as_slice(),
        b"C000",
        b"C003",
        b"SCAN",
        b"ACPI0013",
    ] {
        assert!(contains(&dsdt, name), "{}", String::from_utf8_lossy(name));
    }
    assert!(!contains(&dsdt, b"C004"));
    let ejectable = dsdt.windows(4).filter(|w| w == b"_EJ0").count();
    assert_eq!(ejectable, 3, "all but the first");
    assert!(!contains(
        &table(&growing(4, 4), "DSDT").unwrap(),
        b"ACPI0010"
    ));
}

#[test]
fn a_machine_that_starts_over_has_the_processors_that_it_had() {
    let all = reachable(&build(&growing(2, 4), &[true, false, true, false], BASE));
    let madt = all.into_iter().find(|(name, _)| name == "APIC").unwrap().1;
    let flags: Vec<_> = madt[44..76].chunks_exact(8).map(|e| u32_at(e, 4)).collect();
    assert_eq!(flags, [1, 2, 1, 2], "enabled, or online capable");
}

#[test]
fn the_largest_machine_that_grows_fits_its_place() {
    let config = AcpiConfig {
        has_pci: true,
        has_serial: true,
        has_button: true,
        has_generation: true,
        ..growing(1, u32::from(Vcpus::MAX))
    };
    let len = build(&config, &booted(&config), BASE).len() as u64;
    assert!(len <= layout::ACPI_TABLES.len, "{len} bytes");
}
