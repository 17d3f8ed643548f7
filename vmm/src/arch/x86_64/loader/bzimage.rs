//! `bzImage`: a setup header and a self-extracting kernel with a 64-bit entry at offset 0x200
//! (Documentation/arch/x86/boot.rst).

use podvisor_devices::GuestMemory;
use vm_memory::GuestAddress;

use super::{LoadError, LoadedKernel, SetupHeader, Source, le_bytes};
use crate::arch::layout;

// Offsets in the file.
const SETUP_SECTS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const JUMP_LEN: usize = 0x201;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const XLOADFLAGS: usize = 0x236;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;

/// The header begins at [`SETUP_SECTS`] and ends where the jump over it leads.
const HEADER_START: usize = SETUP_SECTS;
const JUMP_BASE: usize = 0x202;

const SECTOR: u64 = 512;
/// A file that names no setup sectors has these.
const DEFAULT_SETUP_SECTS: u8 = 4;
/// The first version with `xloadflags`; Linux 3.8 of 2013.
const MIN_VERSION: u16 = 0x020c;
/// The kernel has the 64-bit entry.
const XLF_KERNEL_64: u16 = 1 << 0;
/// Where the 64-bit entry is, from the start of the protected-mode part.
const ENTRY_64: u64 = 0x200;

/// Whether a file that begins with `head` has a bzImage's setup header.
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    le_bytes(head, BOOT_FLAG) == Some([0x55, 0xaa]) && le_bytes(head, MAGIC) == Some(*b"HdrS")
}

/// Loads the part behind the setup sectors to the address that the kernel prefers.
pub(super) fn load(
    source: &mut Source<'_>,
    head: &[u8],
    memory: &GuestMemory,
) -> Result<LoadedKernel, LoadError> {
    let cut_short = || source.corrupt("its setup header is cut short");
    let version = u16::from_le_bytes(le_bytes(head, VERSION).ok_or_else(cut_short)?);
    let flags = u16::from_le_bytes(le_bytes(head, XLOADFLAGS).ok_or_else(cut_short)?);
    if version < MIN_VERSION || flags & XLF_KERNEL_64 == 0 {
        return Err(source.unsupported("it has no 64-bit entry"));
    }
    let [sectors] = le_bytes(head, SETUP_SECTS).ok_or_else(cut_short)?;
    let sectors = if sectors == 0 {
        DEFAULT_SETUP_SECTS
    } else {
        sectors
    };
    let base = u64::from_le_bytes(le_bytes(head, PREF_ADDRESS).ok_or_else(cut_short)?);
    let init_len = u32::from_le_bytes(le_bytes(head, INIT_SIZE).ok_or_else(cut_short)?);
    let setup_header = header(head).ok_or_else(cut_short)?;

    let setup_len = (u64::from(sectors) + 1) * SECTOR;
    let len = source
        .len
        .checked_sub(setup_len)
        .filter(|&len| len > ENTRY_64);
    let len = len.ok_or_else(|| source.corrupt("it ends before its content does"))?;
    let end = base.checked_add(u64::from(init_len).max(len));
    let end = end.filter(|&end| base >= layout::HIGH_MEMORY && end <= layout::LOW_RAM_END);
    let end = end.ok_or_else(|| source.corrupt("it wants memory that no kernel has"))?;
    source.load(setup_len, memory, base, len)?;
    Ok(LoadedKernel {
        entry: GuestAddress(base + ENTRY_64),
        end,
        setup_header: Some(setup_header),
    })
}

fn header(head: &[u8]) -> Option<SetupHeader> {
    let [jump] = le_bytes(head, JUMP_LEN)?;
    let bytes = head.get(HEADER_START..JUMP_BASE + usize::from(jump))?;
    Some(SetupHeader(bytes.to_vec()))
}
