//! The first processor's state at the kernel's 64-bit entry: long mode, flat segments,
//! identity-mapped memory, `RSI` at the zero page (Documentation/arch/x86/boot.rst, "64-bit
//! boot protocol").

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use podvisor_devices::GuestMemory;
use podvisor_devices::legacy::acpi_pm;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of `RFLAGS` that is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

const PTE_PRESENT: u64 = 1 << 0;
const PTE_WRITABLE: u64 = 1 << 1;
const PTE_LARGE: u64 = 1 << 7;
const PTES: u64 = 512;
const LARGE_PAGE: u64 = 2 << 20;
/// Page directories; each maps 1 GiB, together all that a kernel can be loaded to.
const DIRECTORIES: u64 = 4;
const _: () = assert!(DIRECTORIES << 30 >= layout::LOW_RAM_END);
const _: () = assert!((2 + DIRECTORIES) * layout::PAGE_SIZE <= layout::PAGE_TABLES.len);

/// `__BOOT_CS` and `__BOOT_DS` are the kernel's names of these selectors.
const SELECTOR_CODE: u16 = 0x10;
const SELECTOR_DATA: u16 = 0x18;
const SELECTOR_TSS: u16 = 0x20;

/// Null, null, 64-bit code, data; the task segment lives in the hidden registers only.
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const _: () = assert!(size_of::<[u64; 4]>() as u64 <= layout::GDT.len);

/// What stands for the firmware's entry: `mov dx, PORT_RESET; mov al, RESET_VALUE; out dx, al`, and
/// `hlt` for ever. Kernels built for EFI take hardware-reduced ACPI for a sign of it, and without EFI
/// they know no other way to reset the machine than to jump there.
const RESET_CODE: [u8; 9] = {
    let [low, high] = layout::PORT_RESET.to_le_bytes();
    [
        0xba,
        low,
        high,
        0xb0,
        acpi_pm::RESET_VALUE,
        0xee,
        0xf4,
        0xeb,
        0xfd,
    ]
};
const _: () = assert!(RESET_CODE.len() as u64 <= layout::RESET_ENTRY.len);

/// Writes page tables, descriptor table and what is at the firmware's entry.
///
/// # Errors
/// When guest memory ends before their places.
pub fn write_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    let table = |index: u64| layout::PAGE_TABLES.base + index * layout::PAGE_SIZE;
    let links = PTE_PRESENT | PTE_WRITABLE;
    memory.write_obj(table(1) | links, GuestAddress(table(0)))?;
    for directory in 0..DIRECTORIES {
        let entry = GuestAddress(table(1) + directory * 8);
        memory.write_obj(table(2 + directory) | links, entry)?;
        let first = directory * PTES;
        let leaves = (first..first + PTES).map(|page| (page * LARGE_PAGE) | links | PTE_LARGE);
        let bytes: Vec<u8> = leaves.flat_map(u64::to_le_bytes).collect();
        memory.write_slice(&bytes, GuestAddress(table(2 + directory)))?;
    }
    let gdt: Vec<u8> = GDT.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    memory.write_slice(&gdt, layout::GDT.start())?;
    memory.write_slice(&RESET_CODE, layout::RESET_ENTRY.start())
}

/// General registers at the entry.
#[must_use]
pub fn regs(entry: GuestAddress) -> kvm_regs {
    kvm_regs {
        rip: entry.0,
        rsi: layout::ZERO_PAGE.base,
        rflags: RFLAGS_RESERVED,
        ..kvm_regs::default()
    }
}

/// Segments and control registers at the entry; `reset` is the state KVM gave the processor.
#[must_use]
pub fn sregs(reset: kvm_sregs) -> kvm_sregs {
    let mut sregs = reset;
    let data = segment(SELECTOR_DATA, SegmentKind::Data);
    sregs.cs = segment(SELECTOR_CODE, SegmentKind::Code);
    (sregs.ds, sregs.es, sregs.fs) = (data, data, data);
    (sregs.gs, sregs.ss) = (data, data);
    sregs.tr = segment(SELECTOR_TSS, SegmentKind::Task);
    sregs.gdt.base = layout::GDT.base;
    sregs.gdt.limit = 8 * 4 - 1;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = layout::PAGE_TABLES.base;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    sregs
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SegmentKind {
    Code,
    Data,
    Task,
}

fn segment(selector: u16, kind: SegmentKind) -> kvm_segment {
    let (type_, s, g) = match kind {
        SegmentKind::Code => (0xb, 1, 1),
        SegmentKind::Data => (0x3, 1, 1),
        SegmentKind::Task => (0xb, 0, 0),
    };
    kvm_segment {
        base: 0,
        limit: if kind == SegmentKind::Task {
            0x67
        } else {
            u32::MAX
        },
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(kind == SegmentKind::Data),
        s,
        l: u8::from(kind == SegmentKind::Code),
        g,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MemorySize;
    use crate::memory::{GuestRam, MemoryBacking, RamPlan};

    #[test]
    fn a_jump_to_the_firmware_resets_the_machine() {
        let size = MemorySize::from_bytes(64 << 20).unwrap();
        let ram = GuestRam::map(&RamPlan::new(size, MemoryBacking::Normal)).unwrap();
        write_tables(ram.guest_memory()).unwrap();
        let mut code = [0; 6];
        let entry = GuestAddress(0xf_fff0);
        ram.guest_memory().read_slice(&mut code, entry).unwrap();
        // mov dx, 0x602; mov al, 1; out dx, al
        assert_eq!(code, [0xba, 0x02, 0x06, 0xb0, 0x01, 0xee]);
    }

    #[test]
    fn page_tables_map_the_first_four_gib_onto_themselves() {
        let ram = GuestRam::map(&RamPlan::new(
            MemorySize::from_bytes(64 << 20).unwrap(),
            MemoryBacking::Normal,
        ))
        .unwrap();
        let memory = ram.guest_memory();
        write_tables(memory).unwrap();
        let read = |address: u64| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
        let address_of = |entry: u64| entry & 0x000f_ffff_ffff_f000;
        for target in [
            0_u64,
            0x20_0000,
            0x100_0000,
            0x4000_0000,
            0xbfe0_0000,
            0xffe0_0000,
        ] {
            let pdpt = address_of(read(sregs(kvm_sregs::default()).cr3));
            let directory = address_of(read(pdpt + (target >> 30) * 8));
            let leaf = read(directory + (target >> 21 & 511) * 8);
            assert_eq!(address_of(leaf), target);
            assert_eq!(leaf & 0xfff, 0x83);
        }
    }
}
