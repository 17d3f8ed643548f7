use proptest::prelude::*;

use super::*;
use crate::config::Vcpus;

const AMD: [u32; 3] = [0x6874_7541, 0x444d_4163, 0x6974_6e65];
const INTEL: [u32; 3] = [0x756e_6547, 0x6c65_746e, 0x4965_6e69];

fn entry(function: u32, index: u32, value: u32) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        index,
        eax: value,
        ebx: value,
        ecx: value,
        edx: value,
        ..kvm_cpuid_entry2::default()
    }
}

/// A host of a vendor that has every feature there is.
fn host([ebx, ecx, edx]: [u32; 3]) -> Vec<kvm_cpuid_entry2> {
    let all = |function| entry(function, 0, u32::MAX);
    let named = |function, eax| kvm_cpuid_entry2 {
        function,
        eax,
        ebx,
        ecx,
        edx,
        ..kvm_cpuid_entry2::default()
    };
    let state = |index, len, offset| kvm_cpuid_entry2 {
        eax: len,
        ebx: offset,
        ..entry(leaf::STATE, index, 0)
    };
    vec![
        named(leaf::MAX, 0x20),
        all(leaf::FEATURES),
        kvm_cpuid_entry2 {
            eax: 1 | 3 << 5,
            ..all(leaf::CACHES)
        },
        all(leaf::POWER),
        all(leaf::EXTENDED_FEATURES),
        entry(leaf::EXTENDED_FEATURES, 1, u32::MAX),
        all(leaf::PERFORMANCE),
        all(leaf::TOPOLOGY),
        state(0, u32::MAX, u32::MAX),
        state(1, u32::MAX, u32::MAX),
        state(2, 256, 576),
        state(5, 64, 832),
        state(6, 512, 896),
        state(7, 1024, 1408),
        state(9, 8, 2432),
        all(leaf::TOPOLOGY_V2),
        all(leaf::KVM_MAX),
        all(leaf::KVM_FEATURES),
        named(leaf::EXTENDED_MAX, 0x8000_0026),
        all(leaf::AMD_FEATURES),
        all(leaf::AMD_SIZES),
        all(leaf::AMD_SVM),
        all(leaf::AMD_TOPOLOGY),
        all(leaf::AMD_TOPOLOGY_V2),
    ]
}

fn cores(vcpus: u32) -> Processors {
    Vcpus::try_from(vcpus).unwrap().into()
}

fn shaped(topology: &str) -> Processors {
    let topology: Topology = topology.parse().unwrap();
    Processors::new(topology.possible(), topology).unwrap()
}

fn of_level(level: CpuLevel) -> Processors {
    let mut processors = cores(2);
    processors.model = CpuModel::Level(level);
    processors
}

fn entries(
    host: &[kvm_cpuid_entry2],
    processors: &Processors,
    apic_id: u8,
) -> Vec<kvm_cpuid_entry2> {
    let template = Template::new(host, processors, true).unwrap();
    template.for_vcpu(apic_id).unwrap().as_slice().to_vec()
}

fn leaf(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
    let mut found = entries
        .iter()
        .filter(|e| e.function == function && e.index == index);
    let entry = *found.next().unwrap_or_else(|| panic!("no {function:#x}"));
    assert!(found.next().is_none(), "{function:#x} twice");
    entry
}

#[test]
fn nested_virtualization_and_counters_are_hidden() {
    let entries = entries(&host(AMD), &cores(1), 0);
    let features = leaf(&entries, leaf::FEATURES, 0);
    assert_eq!(features.ecx & (ECX_VMX | ECX_PDCM), 0);
    assert_eq!(leaf(&entries, leaf::AMD_FEATURES, 0).ecx & AMD_ECX_SVM, 0);
    assert_eq!(leaf(&entries, leaf::PERFORMANCE, 0).eax, 0);
}

#[test]
fn every_processor_finds_its_own_number() {
    for apic_id in [0, 1, 5, 253] {
        let entries = entries(&host(AMD), &cores(254), apic_id);
        let id = u32::from(apic_id);
        assert_eq!(leaf(&entries, leaf::FEATURES, 0).ebx >> 24, id);
        assert_eq!(leaf(&entries, leaf::TOPOLOGY, 1).edx, id);
        assert_eq!(leaf(&entries, leaf::AMD_TOPOLOGY, 0).eax, id);
    }
}

#[test]
fn topology_has_one_socket_with_all_cores_by_default() {
    for (vcpus, bits) in [(1, 0), (2, 1), (3, 2), (8, 3), (254, 8)] {
        let entries = entries(&host(AMD), &cores(vcpus), 0);
        let level = leaf(&entries, leaf::TOPOLOGY, 1);
        assert_eq!((level.eax, level.ebx), (bits, vcpus));
        let sizes = leaf(&entries, leaf::AMD_SIZES, 0);
        assert_eq!(sizes.ecx, bits << 12 | (vcpus - 1));
        for others in [leaf::TOPOLOGY_V2, leaf::AMD_TOPOLOGY_V2] {
            assert!(entries.iter().all(|e| e.function != others));
        }
    }
}

/// Socket, core and thread of a processor as Linux finds them: by the levels' shifts.
fn placed(entries: &[kvm_cpuid_entry2]) -> (u32, u32, u32) {
    let (threads, cores) = (
        leaf(entries, leaf::TOPOLOGY, 0),
        leaf(entries, leaf::TOPOLOGY, 1),
    );
    let id = threads.edx;
    let core = (id & ((1 << cores.eax) - 1)) >> threads.eax;
    (id >> cores.eax, core, id & ((1 << threads.eax) - 1))
}

#[test]
fn sockets_cores_and_threads_are_told_on_every_way() {
    let processors = shaped("2:3:2");
    let mut expected = (0..2).flat_map(|socket| {
        (0..3).flat_map(move |core| (0..2).map(move |thread| (socket, core, thread)))
    });
    for index in 0..12 {
        let id = processors.topology().apic_id(index);
        let entries = entries(&host(AMD), &processors, id);
        let (socket, core, thread) = placed(&entries);
        assert_eq!(Some((socket, core, thread)), expected.next());
        assert_eq!(leaf(&entries, leaf::TOPOLOGY, 1).ebx, 6);
        assert_eq!(leaf(&entries, leaf::FEATURES, 0).ebx >> 16 & 0xff, 6);
        let sizes = leaf(&entries, leaf::AMD_SIZES, 0);
        assert_eq!(sizes.ecx, 3 << 12 | 5);
        let amd = leaf(&entries, leaf::AMD_TOPOLOGY, 0);
        assert_eq!((amd.ebx, amd.ecx), (core | 1 << 8, socket));
        let last_level = leaf(&entries, leaf::CACHES, 0);
        assert_eq!(last_level.eax >> 14 & 0xfff, 5, "sharers less one");
        assert_eq!(last_level.eax >> 26, 2, "cores less one");
    }
}

#[test]
fn amd_tells_of_threads_also_where_the_host_does_not() {
    let mut host = host(AMD);
    host.retain(|e| e.function != leaf::AMD_TOPOLOGY);
    for entry in &mut host {
        match entry.function {
            leaf::EXTENDED_MAX => entry.eax = leaf::AMD_SIZES,
            leaf::AMD_FEATURES => entry.ecx &= !topology::AMD_ECX_TOPOEXT,
            _ => {}
        }
    }
    let without = entries(&host, &shaped("1:2:1"), 0);
    assert!(without.iter().all(|e| e.function != leaf::AMD_TOPOLOGY));
    let with = entries(&host, &shaped("1:2:2"), 3);
    assert_eq!(leaf(&with, leaf::AMD_TOPOLOGY, 0).ebx, 1 | 1 << 8);
    assert_eq!(leaf(&with, leaf::EXTENDED_MAX, 0).eax, leaf::AMD_TOPOLOGY);
    let features = leaf(&with, leaf::AMD_FEATURES, 0);
    assert_ne!(features.ecx & topology::AMD_ECX_TOPOEXT, 0);
}

#[test]
fn a_level_has_its_own_features_and_no_others() {
    let host = host(INTEL);
    let bits = |level| {
        let entries = entries(&host, &of_level(level), 0);
        (
            leaf(&entries, leaf::FEATURES, 0).ecx,
            leaf(&entries, leaf::EXTENDED_FEATURES, 0).ebx,
            leaf(&entries, leaf::AMD_FEATURES, 0).ecx & !2,
        )
    };
    let guests = ECX_X2APIC | ECX_TSC_DEADLINE | ECX_HYPERVISOR;
    let v2 = 1 << 0 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23;
    let v3 = v2 | 1 << 12 | 1 << 22 | 1 << 26 | 1 << 28 | 1 << 29;
    let avx2 = 1 << 3 | 1 << 5 | 1 << 8;
    let avx512 = 0b11 << 16 | 1 << 28 | 0b11 << 30;
    assert_eq!(bits(CpuLevel::V2), (v2 | guests, 0, 1));
    assert_eq!(bits(CpuLevel::V3), (v3 | guests, avx2, 0x21));
    assert_eq!(bits(CpuLevel::V4), (v3 | guests, avx2 | avx512, 0x21));
}

#[test]
fn a_level_is_the_same_on_every_host_that_has_it() {
    for vendor in [INTEL, AMD] {
        let rich = host(vendor);
        let mut poor = rich.clone();
        for entry in &mut poor {
            match entry.function {
                leaf::MAX => entry.eax = 0xd,
                leaf::FEATURES => (entry.eax, entry.ebx) = (0x1234, 0),
                leaf::CACHES | leaf::PERFORMANCE | leaf::AMD_SVM => entry.eax = 0,
                leaf::EXTENDED_FEATURES => entry.ecx = 0,
                leaf::AMD_SIZES => entry.eax = 0x3027,
                _ => {}
            }
        }
        poor.retain(|e| !matches!((e.function, e.index), (leaf::STATE, 9)));
        for level in [CpuLevel::V2, CpuLevel::V3, CpuLevel::V4] {
            let processors = of_level(level);
            assert_eq!(
                entries(&rich, &processors, 1),
                entries(&poor, &processors, 1)
            );
        }
    }
}

#[test]
fn a_host_without_the_level_is_named_what_it_lacks() {
    let mut host = host(AMD);
    for entry in &mut host {
        if entry.function == leaf::EXTENDED_FEATURES {
            entry.ebx &= !(1 << 16 | 1 << 31);
        }
    }
    let error = Template::new(&host, &of_level(CpuLevel::V4), true)
        .err()
        .unwrap();
    assert_eq!(
        error.to_string(),
        "this host cannot run CPU model x86-64-v4: it lacks avx512f, avx512vl"
    );
    assert!(Template::new(&host, &of_level(CpuLevel::V3), true).is_ok());
}

#[test]
fn extended_state_of_a_level_ends_with_its_last_part() {
    for (level, state, len) in [(CpuLevel::V3, 0x07, 832), (CpuLevel::V4, 0xe7, 2432)] {
        let entries = entries(&host(AMD), &of_level(level), 0);
        let all = leaf(&entries, leaf::STATE, 0);
        assert_eq!((all.eax, all.ecx), (state, len));
        assert_eq!(leaf(&entries, leaf::STATE, 2).ebx, 576);
    }
    let without = entries(&host(AMD), &of_level(CpuLevel::V2), 0);
    assert!(without.iter().all(|e| e.function != leaf::STATE));
}

#[test]
fn a_level_names_itself_and_ends_its_ranges() {
    let entries = entries(&host(INTEL), &of_level(CpuLevel::V3), 0);
    let name: Vec<u8> = (0..3)
        .map(|i| leaf(&entries, leaf::BRAND + i, 0))
        .flat_map(|e| [e.eax, e.ebx, e.ecx, e.edx])
        .flat_map(u32::to_le_bytes)
        .collect();
    let text = String::from_utf8(name).unwrap();
    assert_eq!(text.trim_end_matches('\0'), "Podvisor x86-64-v3");
    let highest = |range: std::ops::Range<u32>| {
        let functions = entries.iter().map(|e| e.function);
        functions.filter(|f| range.contains(f)).max().unwrap()
    };
    assert_eq!(leaf(&entries, leaf::MAX, 0).eax, highest(0..0x4000_0000));
    let extended = highest(leaf::EXTENDED_MAX..u32::MAX);
    assert_eq!(leaf(&entries, leaf::EXTENDED_MAX, 0).eax, extended);
    assert_eq!(leaf(&entries, leaf::MAX, 0).ebx, INTEL[0]);
}

proptest! {
    #[test]
    fn no_host_makes_a_level_of_what_it_lacks(
        registers: [u32; 6], level in 0_usize..3,
    ) {
        let level = [CpuLevel::V2, CpuLevel::V3, CpuLevel::V4][level];
        let mut host = host(AMD);
        for entry in &mut host {
            match entry.function {
                leaf::FEATURES => (entry.ecx, entry.edx) = (registers[0], registers[1]),
                leaf::EXTENDED_FEATURES if entry.index == 0 => {
                    (entry.ebx, entry.edx) = (registers[2], registers[3]);
                }
                leaf::AMD_FEATURES => (entry.ecx, entry.edx) = (registers[4], registers[5]),
                _ => {}
            }
        }
        // Whatever is set came from the host or is emulated by KVM.
        if let Ok(template) = Template::new(&host, &of_level(level), false) {
            let entries = template.for_vcpu(0).unwrap();
            let set = leaf(entries.as_slice(), leaf::FEATURES, 0).ecx;
            prop_assert_eq!(set & !(ECX_X2APIC | ECX_HYPERVISOR) & !registers[0], 0);
            let set = leaf(entries.as_slice(), leaf::EXTENDED_FEATURES, 0);
            prop_assert_eq!(set.ebx & !registers[2] | set.edx & !registers[3], 0);
        }
    }
}
