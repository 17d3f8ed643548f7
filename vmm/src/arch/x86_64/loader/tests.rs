//! Kernels as files: good ones, and every way they can be bad.

use std::io::Write;

use tempfile::NamedTempFile;
use vm_memory::Bytes;

use super::*;
use crate::memory::{GuestRam, MemoryBacking, RamPlan};

const MEMORY: u64 = 64 << 20;

fn memory() -> GuestMemory {
    let ram = GuestRam::map(&RamPlan::new(
        MemorySize::from_bytes(MEMORY).unwrap(),
        MemoryBacking::Normal,
    ))
    .unwrap();
    ram.guest_memory().clone()
}

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// An ELF file with one segment: `content` at `address`, `memory_len` bytes in memory.
fn elf(address: u64, content: &[u8], memory_len: u64, entry: u64) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    bytes[18..20].copy_from_slice(&62_u16.to_le_bytes());
    bytes[24..32].copy_from_slice(&entry.to_le_bytes());
    bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
    bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
    bytes[56..58].copy_from_slice(&1_u16.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(7_u32.to_le_bytes());
    for field in [120, 0, address, content.len() as u64, memory_len, 0x20_0000] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend(content);
    bytes
}

/// A bzImage with `content` as its protected-mode part.
fn bzimage(content: &[u8], version: u16, flags: u16) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    bytes[0x1f1] = 1;
    bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bytes[0x201] = 0x6a;
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x206..0x208].copy_from_slice(&version.to_le_bytes());
    bytes[0x236..0x238].copy_from_slice(&flags.to_le_bytes());
    bytes[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
    bytes[0x260..0x264].copy_from_slice(&0x20_0000_u32.to_le_bytes());
    bytes.extend(content);
    bytes
}

#[test]
fn elf_segments_land_at_their_physical_addresses() {
    let memory = memory();
    let kernel = file(&elf(0x100_0000, b"kernel", 0x3000, 0x100_0002));
    let loaded = load_kernel(kernel.path(), &memory).unwrap();
    assert_eq!(loaded.entry, GuestAddress(0x100_0002));
    assert_eq!(loaded.end, 0x100_3000);
    let mut found = [0; 6];
    memory
        .read_slice(&mut found, GuestAddress(0x100_0000))
        .unwrap();
    assert_eq!(&found, b"kernel");
}

#[test]
fn bzimage_is_entered_512_bytes_into_its_kernel() {
    let memory = memory();
    let kernel = file(&bzimage(&[0xab; 0x400], 0x20f, 1));
    let loaded = load_kernel(kernel.path(), &memory).unwrap();
    assert_eq!(loaded.entry, GuestAddress(0x100_0200));
    assert_eq!(loaded.end, 0x120_0000);
    assert_eq!(loaded.setup_header.unwrap().0.len(), 0x202 + 0x6a - 0x1f1);
    assert_eq!(
        memory.read_obj::<u8>(GuestAddress(0x100_03ff)).unwrap(),
        0xab
    );
}

#[test]
fn initrd_lies_page_aligned_at_the_end_of_memory() {
    let memory = memory();
    let kernel = LoadedKernel {
        entry: GuestAddress(0x100_0000),
        end: 0x200_0000,
        setup_header: None,
    };
    let image = file(&[7; 5000]);
    let loaded = load_initrd(image.path(), &memory, &kernel).unwrap();
    assert_eq!(
        loaded,
        LoadedInitrd {
            base: MEMORY - 8192,
            len: 5000
        }
    );
    let kernel = LoadedKernel {
        end: MEMORY - 4096,
        ..kernel
    };
    let error = load_initrd(image.path(), &memory, &kernel).unwrap_err();
    assert!(
        matches!(error, LoadError::NoRoom { len: 5000, .. }),
        "{error}"
    );
}

#[test]
fn a_file_of_another_kind_is_named_so() {
    for bytes in [&b""[..], b"#!/bin/sh\n", &[0; 2000]] {
        let error = load_kernel(file(bytes).path(), &memory()).unwrap_err();
        assert!(matches!(error, LoadError::UnknownFormat { .. }), "{error}");
    }
    let error = load_kernel(Path::new("/nonexistent/vmlinux"), &memory()).unwrap_err();
    assert_eq!(error.to_string(), "cannot read /nonexistent/vmlinux");
}

#[test]
fn kernels_without_a_64_bit_entry_are_not_supported() {
    for (version, flags) in [(0x20b, 1), (0x20f, 0)] {
        let kernel = file(&bzimage(&[0; 0x400], version, flags));
        let error = load_kernel(kernel.path(), &memory()).unwrap_err();
        assert!(matches!(error, LoadError::Unsupported { .. }), "{error}");
    }
}

#[test]
fn segments_outside_of_memory_are_refused() {
    let cases = [
        elf(0x1000, b"x", 1, 0x1000),
        elf(u64::MAX - 1, b"x", 4, u64::MAX - 1),
        elf(0x100_0000, b"xyz", 1, 0x100_0000),
        elf(0x100_0000, b"x", 1, 0x300_0000),
    ];
    for bytes in cases {
        let error = load_kernel(file(&bytes).path(), &memory()).unwrap_err();
        assert!(matches!(error, LoadError::Corrupt { .. }), "{error}");
    }
    let beyond = elf(MEMORY - 2, b"xyz", 3, MEMORY - 2);
    let error = load_kernel(file(&beyond).path(), &memory()).unwrap_err();
    assert!(matches!(error, LoadError::NoRoom { .. }), "{error}");
}

#[test]
fn a_kernel_cut_short_anywhere_is_an_error_and_no_panic() {
    let memory = memory();
    for whole in [
        elf(0x100_0000, &[1; 300], 300, 0x100_0000),
        bzimage(&[1; 0x300], 0x20f, 1),
    ] {
        for len in 0..whole.len() {
            let cut = file(&whole[..len]);
            let result = load_kernel(cut.path(), &memory);
            // A bzImage has no length of its own: what is behind its entry may be cut.
            assert!(
                result.is_err() || len > 1024 + 0x200,
                "{len} bytes were loaded"
            );
        }
    }
}

proptest::proptest! {
    #[test]
    fn damaged_headers_never_panic(at in 0_usize..120, value: u8, elf_file: bool) {
        let mut bytes = if elf_file { elf(0x100_0000, &[1; 64], 64, 0x100_0000) } else { bzimage(&[1; 0x300], 0x20f, 1) };
        let at = if elf_file { at } else { 0x1f1 + at };
        bytes[at] = value;
        let _ = load_kernel(file(&bytes).path(), &memory());
    }
}
