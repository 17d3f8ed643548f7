//! `vmlinux`: an ELF executable whose entry is the 64-bit entry of Linux (`startup_64`).

use podvisor_devices::GuestMemory;
use vm_memory::GuestAddress;

use super::{LoadError, LoadedKernel, Source, le_bytes};
use crate::arch::layout;

// Offsets and values of the System V ABI, chapters 4 and 5, for 64-bit little-endian files.
const MAGIC: &[u8] = b"\x7fELF\x02\x01\x01";
const E_MACHINE: usize = 18;
const E_ENTRY: usize = 24;
const E_PHOFF: usize = 32;
const E_PHENTSIZE: usize = 54;
const E_PHNUM: usize = 56;
const EM_X86_64: u16 = 62;
const PROGRAM_HEADER_LEN: usize = 56;
const P_OFFSET: usize = 8;
const P_PADDR: usize = 24;
const P_FILESZ: usize = 32;
const P_MEMSZ: usize = 40;
const PT_LOAD: u32 = 1;

/// Linux has five program headers; more than this is no kernel.
const MAX_PROGRAM_HEADERS: u16 = 64;

/// Whether a file that begins with `head` is a 64-bit ELF file.
pub(super) fn is_elf(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// A loadable segment as its program header has it.
struct Segment {
    file_offset: u64,
    address: u64,
    file_len: u64,
    memory_len: u64,
}

/// Loads every segment to its physical address. What the file does not fill stays as mapped:
/// zero.
pub(super) fn load(
    source: &mut Source<'_>,
    head: &[u8],
    memory: &GuestMemory,
) -> Result<LoadedKernel, LoadError> {
    let machine = le_bytes(head, E_MACHINE).map(u16::from_le_bytes);
    if machine != Some(EM_X86_64) {
        return Err(source.unsupported("it is not for x86_64"));
    }
    let entry = le_bytes(head, E_ENTRY).map(u64::from_le_bytes);
    let entry = entry.ok_or_else(|| source.corrupt("its ELF header is cut short"))?;

    let mut end = layout::HIGH_MEMORY;
    let mut entry_loaded = false;
    for segment in segments(source, head)? {
        let last = segment.address.checked_add(segment.memory_len);
        let last = last.ok_or_else(|| source.corrupt("a segment wraps around"))?;
        if segment.file_len > segment.memory_len {
            return Err(source.corrupt("a segment is longer in the file than in memory"));
        }
        if segment.address < layout::HIGH_MEMORY || last > layout::LOW_RAM_END {
            return Err(source.corrupt("a segment lies outside of the kernel's memory"));
        }
        source.load(
            segment.file_offset,
            memory,
            segment.address,
            segment.file_len,
        )?;
        entry_loaded |= (segment.address..last).contains(&entry);
        end = end.max(last);
    }
    if !entry_loaded {
        return Err(source.corrupt("its entry lies in no segment"));
    }
    Ok(LoadedKernel {
        entry: GuestAddress(entry),
        end,
        setup_header: None,
    })
}

fn segments(source: &Source<'_>, head: &[u8]) -> Result<Vec<Segment>, LoadError> {
    let cut_short = || source.corrupt("its ELF header is cut short");
    let offset = le_bytes(head, E_PHOFF)
        .map(u64::from_le_bytes)
        .ok_or_else(cut_short)?;
    let entry_len = le_bytes(head, E_PHENTSIZE)
        .map(u16::from_le_bytes)
        .ok_or_else(cut_short)?;
    let count = le_bytes(head, E_PHNUM)
        .map(u16::from_le_bytes)
        .ok_or_else(cut_short)?;
    if usize::from(entry_len) != PROGRAM_HEADER_LEN || !(1..=MAX_PROGRAM_HEADERS).contains(&count) {
        return Err(source.corrupt("its program headers have no valid size or count"));
    }
    let table = source.read_at(offset, usize::from(count) * PROGRAM_HEADER_LEN)?;
    let headers = table.chunks_exact(PROGRAM_HEADER_LEN);
    if headers.len() != usize::from(count) {
        return Err(source.corrupt("its program headers are cut short"));
    }
    let segments =
        headers.filter(|header| le_bytes(header, 0).map(u32::from_le_bytes) == Some(PT_LOAD));
    segments
        .map(|header| Segment::parse(header).ok_or_else(cut_short))
        .collect()
}

impl Segment {
    fn parse(header: &[u8]) -> Option<Self> {
        Some(Self {
            file_offset: u64::from_le_bytes(le_bytes(header, P_OFFSET)?),
            address: u64::from_le_bytes(le_bytes(header, P_PADDR)?),
            file_len: u64::from_le_bytes(le_bytes(header, P_FILESZ)?),
            memory_len: u64::from_le_bytes(le_bytes(header, P_MEMSZ)?),
        })
    }
}
