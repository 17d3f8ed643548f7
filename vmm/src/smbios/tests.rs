//! The tables, read back as dmidecode(8) reads them: by their own lengths and references.

use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::*;
use crate::memory::{GuestRam, MemoryBacking, RamPlan};

/// A structure as a guest sees it.
#[derive(Debug)]
struct Decoded {
    kind: u8,
    handle: u16,
    formatted: Vec<u8>,
    strings: Vec<String>,
}

impl Decoded {
    fn number<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.formatted[offset..offset + N].try_into().unwrap()
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.number(offset))
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.number(offset))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.number(offset))
    }

    /// The string that the byte at `offset` refers to.
    fn text(&self, offset: usize) -> Option<&str> {
        let number = usize::from(self.formatted[offset]);
        (number > 0).then(|| self.strings[number - 1].as_str())
    }
}

/// Scans for the entry point as Linux does, and follows it.
fn decode(memory: &GuestMemory) -> Vec<Decoded> {
    let mut area = vec![0; 0x1_0000];
    memory
        .read_slice(&mut area, GuestAddress(0xf_0000))
        .unwrap();
    let entry = area
        .chunks(16)
        .position(|p| p.starts_with(b"_SM3_"))
        .unwrap()
        * 16;
    let entry = &area[entry..entry + usize::from(area[entry + 6])];
    let sum = entry.iter().fold(0_u8, |sum, &b| sum.wrapping_add(b));
    assert_eq!(sum, 0, "checksum");
    assert_eq!(entry[7..9], [3, 0], "version");
    let len = u32::from_le_bytes(entry[12..16].try_into().unwrap()) as usize;
    let address = u64::from_le_bytes(entry[16..24].try_into().unwrap());
    let start = usize::try_from(address).unwrap() - 0xf_0000;
    structures(&area[start..start + len])
}

fn structures(mut table: &[u8]) -> Vec<Decoded> {
    let mut found = Vec::new();
    while !table.is_empty() {
        let (formatted, rest) = table.split_at(usize::from(table[1]));
        let end = rest.windows(2).position(|pair| pair == [0, 0]).unwrap();
        let strings = rest[..end].split(|&byte| byte == 0);
        found.push(Decoded {
            kind: formatted[0],
            handle: u16::from_le_bytes([formatted[2], formatted[3]]),
            formatted: formatted.to_vec(),
            strings: strings
                .filter(|text| !text.is_empty())
                .map(|text| String::from_utf8(text.to_vec()).unwrap())
                .collect(),
        });
        table = &rest[end + 2..];
    }
    assert_eq!(found.last().unwrap().kind, 127, "the end is marked");
    found
}

fn shape(topology: &str, memory_mib: u64) -> Shape {
    Shape {
        topology: topology.parse().unwrap(),
        processor_id: 0x1122_3344_5566_7788,
        memory: MemorySize::from_bytes(memory_mib << 20).unwrap(),
    }
}

fn written(config: &SmbiosConfig, shape: Shape) -> Vec<Decoded> {
    let size = MemorySize::from_bytes(64 << 20).unwrap();
    let ram = GuestRam::map(&RamPlan::new(size, MemoryBacking::Normal)).unwrap();
    write(config, shape, ram.guest_memory()).unwrap();
    decode(ram.guest_memory())
}

fn of_kind(structures: &[Decoded], kind: u8) -> Vec<&Decoded> {
    structures.iter().filter(|s| s.kind == kind).collect()
}

fn some(text: &str) -> Option<SmbiosText> {
    Some(SmbiosText::try_from(text).unwrap())
}

#[test]
fn identity_is_found_where_the_specification_has_it() {
    let uuid = "00112233-4455-6677-8899-aabbccddeeff";
    let config = SmbiosConfig {
        system: SystemIdentity {
            manufacturer: some("Maker"),
            product: some("Product"),
            version: some("1.2"),
            serial: some("ns/name"),
            uuid: Some(uuid.parse().unwrap()),
            sku: some("SKU"),
            family: some("Family"),
        },
        board: BoardIdentity {
            serial: some("board"),
            location: some("slot"),
            ..BoardIdentity::default()
        },
        chassis: ChassisIdentity {
            asset: some("asset"),
            sku: some("case"),
            ..ChassisIdentity::default()
        },
        oem_strings: OemStrings::try_from(
            ["one", "two"]
                .map(|t| OemString::try_from(t).unwrap())
                .to_vec(),
        )
        .unwrap(),
    };
    let structures = written(&config, shape("1:2:1", 64));
    let [system] = of_kind(&structures, 1)[..] else {
        panic!("one system");
    };
    let texts = [4, 5, 6, 7, 0x19, 0x1a].map(|offset| system.text(offset).unwrap());
    assert_eq!(
        texts,
        ["Maker", "Product", "1.2", "ns/name", "SKU", "Family"]
    );
    assert_eq!(
        system.number::<16>(8),
        uuid.parse::<Uuid>().unwrap().to_wire()
    );
    let [board] = of_kind(&structures, 2)[..] else {
        panic!("one board");
    };
    assert_eq!(board.text(4), Some("Podvisor"));
    assert_eq!((board.text(5), board.text(7)), (None, Some("board")));
    assert_eq!(board.text(0x0a), Some("slot"));
    let [chassis] = of_kind(&structures, 3)[..] else {
        panic!("one chassis");
    };
    assert_eq!(board.u16(0x0b), chassis.handle);
    assert_eq!(chassis.text(8), Some("asset"));
    assert_eq!(chassis.text(0x15), Some("case"));
    assert_eq!(of_kind(&structures, 11)[0].strings, ["one", "two"]);
}

#[test]
fn a_machine_without_wishes_names_its_maker_and_has_no_oem_strings() {
    let structures = written(&SmbiosConfig::default(), shape("1:1:1", 64));
    let system = of_kind(&structures, 1)[0];
    assert_eq!(system.text(4), Some("Podvisor"));
    assert_eq!(system.text(7), None);
    assert_eq!(system.number::<16>(8), [0; 16]);
    assert!(of_kind(&structures, 11).is_empty());
    let firmware = of_kind(&structures, 0)[0];
    assert_eq!(firmware.formatted[0x13] & 0x10, 0x10, "virtual machine");
    let kinds: Vec<_> = structures.iter().map(|s| s.kind).collect();
    assert_eq!(kinds, [0, 1, 2, 3, 4, 16, 17, 19, 32, 127]);
}

#[test]
fn every_socket_tells_its_cores_and_threads() {
    let structures = written(&SmbiosConfig::default(), shape("3:4:2", 64));
    let sockets = of_kind(&structures, 4);
    assert_eq!(sockets.len(), 3);
    for (index, socket) in sockets.iter().enumerate() {
        assert_eq!(socket.text(4), Some(format!("CPU {index}").as_str()));
        assert_eq!(socket.u64(8), 0x1122_3344_5566_7788);
        assert_eq!(socket.formatted[0x18] & 0x40, 0x40, "populated");
        assert_eq!(socket.formatted[0x23..0x26], [4, 4, 8]);
        assert_eq!(socket.u16(0x2a), 4);
        assert_eq!(socket.u16(0x2e), 8);
    }
}

#[test]
fn memory_is_one_module_over_the_machines_ranges() {
    for (mib, size, extended) in [(64, 64, 0), (8192, 8192, 0), (64 << 10, 0x7fff, 64 << 10)] {
        let structures = written(&SmbiosConfig::default(), shape("1:1:1", mib));
        let array = of_kind(&structures, 16)[0];
        assert_eq!(u64::from(array.u32(7)), mib << 10);
        let module = of_kind(&structures, 17)[0];
        assert_eq!(module.u16(4), array.handle);
        assert_eq!((module.u16(0x0c), module.u32(0x1c)), (size, extended));
        let ranges = of_kind(&structures, 19);
        let bytes: u64 = ranges.iter().map(|r| r.u64(0x17) - r.u64(0x0f) + 1).sum();
        assert_eq!(bytes, mib << 20);
        assert!(ranges.iter().all(|range| range.u16(0x0c) == array.handle));
    }
}

#[test]
fn structures_have_the_lengths_of_version_3_0_and_handles_of_their_own() {
    let structures = written(&SmbiosConfig::default(), shape("2:1:1", 4096));
    let lengths = [
        (0, 0x18),
        (1, 0x1b),
        (2, 0x0f),
        (3, 0x16),
        (4, 0x30),
        (16, 0x17),
        (17, 0x28),
        (19, 0x1f),
        (32, 0x0b),
        (127, 4),
    ];
    for (kind, len) in lengths {
        let found = of_kind(&structures, kind);
        assert!(!found.is_empty(), "type {kind}");
        assert!(
            found.iter().all(|s| s.formatted.len() == len),
            "type {kind}"
        );
    }
    let mut handles: Vec<_> = structures.iter().map(|s| s.handle).collect();
    handles.sort_unstable();
    handles.dedup();
    assert_eq!(handles.len(), structures.len());
}

#[test]
fn the_largest_tables_fit_their_place() {
    let text = some(&"x".repeat(128));
    let config = SmbiosConfig {
        system: SystemIdentity {
            manufacturer: text.clone(),
            product: text.clone(),
            version: text.clone(),
            serial: text.clone(),
            uuid: None,
            sku: text.clone(),
            family: text.clone(),
        },
        board: BoardIdentity {
            manufacturer: text.clone(),
            product: text.clone(),
            version: text.clone(),
            serial: text.clone(),
            asset: text.clone(),
            location: text.clone(),
        },
        chassis: ChassisIdentity {
            manufacturer: text.clone(),
            version: text.clone(),
            serial: text.clone(),
            asset: text.clone(),
            sku: text,
        },
        oem_strings: OemStrings::try_from(vec![
            OemString::try_from("x".repeat(1024).as_str())
                .unwrap();
            16
        ])
        .unwrap(),
    };
    let structures = written(&config, shape("254:1:1", 64));
    assert_eq!(of_kind(&structures, 4).len(), 254);
}

proptest! {
    #[test]
    fn any_accepted_text_arrives_whole(product in "[ -~]{1,128}", oem in "[ -~]{1,200}") {
        let config = SmbiosConfig {
            system: SystemIdentity { product: some(&product), ..SystemIdentity::default() },
            oem_strings: OemStrings::try_from(vec![OemString::try_from(oem.as_str()).unwrap()])
                .unwrap(),
            ..SmbiosConfig::default()
        };
        let structures = structures(&table::build(&config, shape("1:1:1", 64), 0)[32..]);
        prop_assert_eq!(of_kind(&structures, 1)[0].text(5), Some(product.as_str()));
        prop_assert_eq!(&of_kind(&structures, 11)[0].strings, &[oem]);
    }
}
