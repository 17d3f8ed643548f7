//! The structures of a machine, and the entry point that leads to them.

use super::structure::{Handle, Structure};
use super::{BoardIdentity, ChassisIdentity, Shape, SmbiosConfig, SystemIdentity};
use crate::arch::layout;

/// Length of the 64-bit entry point (DSP0134, 5.2.2).
const ENTRY_POINT_LEN: usize = 24;
/// Where the tables begin behind the entry point.
const TABLES_OFFSET: usize = 32;
/// Where the entry point has its checksum.
const CHECKSUM: usize = 5;

const MAKER: &str = "Podvisor";
const MACHINE: &str = "Podvisor machine";
/// The release date of the firmware that there is not: fixed, so that equal machines have equal
/// tables.
const DATE: &str = "01/01/2026";

// Handles. Sockets follow each other from theirs on.
const FIRMWARE: Handle = Handle(0x0000);
const SYSTEM: Handle = Handle(0x0100);
const BOARD: Handle = Handle(0x0200);
const CHASSIS: Handle = Handle(0x0300);
const SOCKET: u16 = 0x0400;
const OEM_STRINGS: Handle = Handle(0x0b00);
const MEMORY_ARRAY: Handle = Handle(0x1000);
const MEMORY_DEVICE: Handle = Handle(0x1100);
const MEMORY_RANGE: u16 = 0x1300;
const BOOT_STATUS: Handle = Handle(0x2000);
const END: Handle = Handle(0x7f00);

const UNKNOWN: u8 = 2;
const SAFE: u8 = 3;
/// A reference to a structure that there is not: the caches are not described.
const NO_HANDLE: u16 = 0xffff;

// Type 0 (DSP0134, 7.1).
/// The segment that real firmware begins at.
const FIRMWARE_SEGMENT: u16 = 0xe800;
const FIRMWARE_CHARACTERISTICS_UNSUPPORTED: u64 = 1 << 3;
/// Targeted content distribution, and: the tables describe a virtual machine.
const FIRMWARE_EXTENSION_2: u8 = 1 << 2 | 1 << 4;
/// "No such version."
const NO_VERSION: u8 = 0xff;

/// All structures and, before them, the entry point, as they lie in memory from `base` on.
pub(super) fn build(config: &SmbiosConfig, shape: Shape, base: u64) -> Vec<u8> {
    let mut table = Vec::new();
    firmware().finish(&mut table);
    system(&config.system).finish(&mut table);
    board(&config.board).finish(&mut table);
    chassis(&config.chassis).finish(&mut table);
    for socket in 0..shape.topology.sockets() {
        processor(socket, shape).finish(&mut table);
    }
    let oem_strings = config.oem_strings.as_slice();
    if !oem_strings.is_empty() {
        let count = u8::try_from(oem_strings.len()).unwrap_or(u8::MAX);
        let mut structure = Structure::new(11, OEM_STRINGS).byte(count);
        for text in oem_strings {
            structure.add(text.as_str());
        }
        structure.finish(&mut table);
    }
    memory(shape.memory.bytes(), &mut table);
    // No error was seen at boot.
    Structure::new(32, BOOT_STATUS)
        .bytes(&[0; 7])
        .finish(&mut table);
    Structure::new(127, END).finish(&mut table);
    let mut all = entry_point(base + TABLES_OFFSET as u64, table.len());
    all.resize(TABLES_OFFSET, 0);
    all.extend(table);
    all
}

fn entry_point(tables: u64, len: usize) -> Vec<u8> {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(TABLES_OFFSET);
    bytes.extend(b"_SM3_");
    // Checksum, length, version 3.0, revision of the document and of the entry point, reserved.
    bytes.extend([0, 24, 3, 0, 0, 1, 0]);
    bytes.extend(len.to_le_bytes());
    bytes.extend(tables.to_le_bytes());
    debug_assert_eq!(bytes.len(), ENTRY_POINT_LEN);
    let sum = bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
    if let Some(checksum) = bytes.get_mut(CHECKSUM) {
        *checksum = sum.wrapping_neg();
    }
    bytes
}

fn firmware() -> Structure {
    Structure::new(0, FIRMWARE)
        .name(MAKER)
        .name(env!("CARGO_PKG_VERSION"))
        .word(FIRMWARE_SEGMENT)
        .name(DATE)
        // 64 KiB.
        .byte(0)
        .qword(FIRMWARE_CHARACTERISTICS_UNSUPPORTED)
        .bytes(&[0, FIRMWARE_EXTENSION_2])
        .bytes(&[NO_VERSION; 4])
}

fn system(identity: &SystemIdentity) -> Structure {
    // All zeroes say that there is no identity.
    let uuid = identity.uuid.map(super::Uuid::to_wire).unwrap_or_default();
    let power_switch = 6;
    Structure::new(1, SYSTEM)
        .text_or(identity.manufacturer.as_ref(), MAKER)
        .text_or(identity.product.as_ref(), MACHINE)
        .text(identity.version.as_ref())
        .text(identity.serial.as_ref())
        .bytes(&uuid)
        .byte(power_switch)
        .text(identity.sku.as_ref())
        .text(identity.family.as_ref())
}

fn board(identity: &BoardIdentity) -> Structure {
    let (hosting_board, motherboard) = (1, 0x0a);
    Structure::new(2, BOARD)
        .text_or(identity.manufacturer.as_ref(), MAKER)
        .text(identity.product.as_ref())
        .text(identity.version.as_ref())
        .text(identity.serial.as_ref())
        .text(identity.asset.as_ref())
        .byte(hosting_board)
        .text(identity.location.as_ref())
        .word(CHASSIS.0)
        .byte(motherboard)
        // Contains no other objects.
        .byte(0)
}

fn chassis(identity: &ChassisIdentity) -> Structure {
    let other = 1;
    Structure::new(3, CHASSIS)
        .text_or(identity.manufacturer.as_ref(), MAKER)
        .byte(other)
        .text(identity.version.as_ref())
        .text(identity.serial.as_ref())
        .text(identity.asset.as_ref())
        // Boot-up, power supply and thermal state; security.
        .bytes(&[SAFE, SAFE, SAFE, UNKNOWN])
        .dword(0)
        // Height and power cords unspecified; no contained elements.
        .bytes(&[0, 0, 0, 0])
        .text(identity.sku.as_ref())
}

/// Type 4 (DSP0134, 7.5).
fn processor(socket: u8, shape: Shape) -> Structure {
    let (central, unknown_family, populated_and_enabled) = (3, 2, 0x41);
    let (other_socket, sixty_four_bit_multi_core_virtual) = (1, 1 << 2 | 1 << 3 | 1 << 6);
    let cores = shape.topology.cores();
    let threads = u8::try_from(shape.topology.socket_threads()).unwrap_or(u8::MAX);
    let counts = |structure: Structure| {
        let wide = [cores, cores, threads].map(u16::from);
        wide.into_iter().fold(structure, Structure::word)
    };
    let structure = Structure::new(4, Handle(SOCKET + u16::from(socket)))
        .name(&format!("CPU {socket}"))
        .byte(central)
        .byte(unknown_family)
        .name(MAKER)
        .qword(shape.processor_id)
        .byte(0)
        // Voltage, external clock, maximum and current speed: unknown.
        .byte(0)
        .bytes(&[0; 6])
        .byte(populated_and_enabled)
        .byte(other_socket)
        .word(NO_HANDLE)
        .word(NO_HANDLE)
        .word(NO_HANDLE)
        // Serial, asset, part: not given.
        .bytes(&[0; 3])
        .bytes(&[cores, cores, threads])
        .word(sixty_four_bit_multi_core_virtual)
        .word(u16::from(unknown_family));
    counts(structure)
}

/// One array of one module, and where it lies: types 16, 17 and 19.
fn memory(bytes: u64, table: &mut Vec<u8>) {
    let (system_board, system_memory, no_correction) = (3, 3, 3);
    let kib = bytes >> 10;
    // What is too large for the field stands in the wider one.
    let (capacity, extended) = match u32::try_from(kib) {
        Ok(small @ ..0x8000_0000) => (small, 0),
        _ => (0x8000_0000, bytes),
    };
    Structure::new(16, MEMORY_ARRAY)
        .bytes(&[system_board, system_memory, no_correction])
        .dword(capacity)
        .word(0xfffe)
        .word(1)
        .qword(extended)
        .finish(table);
    memory_device(bytes).finish(table);
    for (handle, range) in (MEMORY_RANGE..).zip(layout::ram_ranges(bytes)) {
        Structure::new(19, Handle(handle))
            .dword(u32::MAX)
            .dword(u32::MAX)
            .word(MEMORY_ARRAY.0)
            .byte(1)
            .qword(range.base)
            .qword(range.end() - 1)
            .finish(table);
    }
}

/// Type 17 (DSP0134, 7.18).
fn memory_device(bytes: u64) -> Structure {
    let (dimm, ram, other_detail) = (9, 7, 1 << 1);
    let mib = u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
    let (size, extended) = match u16::try_from(mib) {
        Ok(small @ ..0x7fff) => (small, 0),
        _ => (0x7fff, mib),
    };
    Structure::new(17, MEMORY_DEVICE)
        .word(MEMORY_ARRAY.0)
        .word(0xfffe)
        // Widths unknown.
        .word(0xffff)
        .word(0xffff)
        .word(size)
        .byte(dimm)
        .byte(0)
        .name("DIMM 0")
        .byte(0)
        .byte(ram)
        .word(other_detail)
        // Speed unknown.
        .word(0)
        .name(MAKER)
        // Serial, asset, part: not given. Rank unknown.
        .bytes(&[0; 4])
        .dword(extended)
        // Speed and voltages unknown.
        .bytes(&[0; 8])
}
