//! The guest-physical memory map and the port map, version 1.
//!
//! It never depends on the host (a saved machine restores anywhere):
//!
//! ```text
//! 0x0000_0000  RAM: boot structures below 640 KiB (this file), kernel from 1 MiB up,
//!              initial image at the top of low RAM
//! 0x000a_0000  legacy hole; ACPI tables from 0xe0000, where a scan for the RSDP looks, and
//!              SMBIOS tables from 0xf0000, where a scan for those looks
//! 0x0010_0000  RAM up to 3 GiB
//! 0xc000_0000  32-bit PCI window: the BARs of all virtio devices
//! 0xe000_0000  PCI configuration space of bus 0 (ECAM)
//! 0xfec0_0000  IOAPIC;  0xfee0_0000 local APICs;  0xfffb_c000 pages KVM needs on Intel
//! 4 GiB        RAM beyond the hole, then memory that is plugged
//! 384 GiB      64-bit PCI window, up to what 39 address bits reach
//! ```

use podvisor_devices::legacy::{acpi_pm, cpu_slots, ged, i8042, serial};
use vm_memory::GuestAddress;

/// Version of this map; a saved machine names the one it was built on.
pub const VERSION: u32 = 1;

/// Bytes in a small page.
pub const PAGE_SIZE: u64 = 4096;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A range of guest-physical addresses or ports: first address and length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Range {
    const fn new(base: u64, len: u64) -> Self {
        Self { base, len }
    }

    /// The first address behind the range.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.base + self.len
    }

    /// Where the range begins, as an address in guest memory.
    #[must_use]
    pub const fn start(self) -> GuestAddress {
        GuestAddress(self.base)
    }

    /// Whether all of `other` lies in it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.base <= other.base && other.end() <= self.end()
    }

    const fn before(self, next: Self) -> bool {
        self.end() <= next.base
    }
}

// Boot structures in conventional memory. The kernel reserves or copies what it still needs
// before it uses this memory for itself.

/// Global descriptor table of the entry state.
pub const GDT: Range = Range::new(0x500, 0x20);
/// The "zero page": `struct boot_params` (Documentation/arch/x86/zero-page.rst).
pub const ZERO_PAGE: Range = Range::new(0x7000, PAGE_SIZE);
/// Identity page tables of the entry state: one PML4, one PDPT, four page directories.
pub const PAGE_TABLES: Range = Range::new(0x9000, 6 * PAGE_SIZE);
/// Kernel command line with its terminating zero.
pub const COMMAND_LINE: Range = Range::new(0x2_0000, 2048);
/// End of conventional memory; what lies behind belongs to the legacy hole.
pub const CONVENTIONAL_END: u64 = 0x9_fc00;
/// ACPI tables: the RSDP first, where kernels without `acpi_rsdp_addr` scan for it.
pub const ACPI_TABLES: Range = Range::new(0xe_0000, 60 * KIB);
/// What tells a guest that it goes on from a copy: 16 bytes on a page of their own.
pub const GENERATION_ID: Range = Range::new(0xe_f000, PAGE_SIZE);
/// SMBIOS tables: the entry point first. Kernels without EFI scan the last 64 KiB below 1 MiB for it,
/// those started by kexec as well.
pub const SMBIOS: Range = Range::new(0xf_0000, 64 * KIB - RESET_ENTRY.len);
/// Where a processor begins in real mode, and where kernels jump that want the firmware to reset the
/// machine (arch/x86/kernel/reboot.c, `machine_real_restart`).
pub const RESET_ENTRY: Range = Range::new(0xf_fff0, 16);
/// Memory from 1 MiB up: the kernel's.
pub const HIGH_MEMORY: u64 = MIB;

/// RAM below the 32-bit device hole ends here at the latest.
pub const LOW_RAM_END: u64 = 3 * GIB;
/// RAM beyond [`LOW_RAM_END`] bytes continues here.
pub const HIGH_RAM: u64 = 4 * GIB;
/// Memory that is plugged begins at a multiple of this: a host maps it in the largest pages, and
/// guests take it in pieces of 128 MiB.
pub const PLUGGED_RAM_ALIGNMENT: u64 = GIB;
/// And its region is a multiple of this.
pub const PLUGGED_RAM_STEP: u64 = 128 * MIB;
/// RAM ends here at the latest.
pub const HIGH_RAM_END: u64 = PCI_WINDOW_64.base;

/// BARs below 4 GiB.
pub const PCI_WINDOW_32: Range = Range::new(LOW_RAM_END, 512 * MIB);
/// Memory-mapped configuration space of PCI bus 0: 32 devices of 8 functions of 4 KiB.
pub const PCI_ECAM: Range = Range::new(0xe000_0000, MIB);
/// Room for large BARs, within the 39 address bits every host offers.
pub const PCI_WINDOW_64: Range = Range::new(384 * GIB, 128 * GIB);
/// Each virtio device's BAR lies in its own slice of the 32-bit window.
pub const PCI_BAR_STRIDE: u64 = MIB;
/// Devices that one bus can hold beside the host bridge.
pub const PCI_MAX_DEVICES: usize = 31;

/// The IOAPIC's registers; KVM answers there.
pub const IOAPIC: Range = Range::new(0xfec0_0000, PAGE_SIZE);
/// The local APICs' registers; KVM answers there. Messages of MSIs go here, too.
pub const LOCAL_APIC: Range = Range::new(0xfee0_0000, MIB);
/// One page for `KVM_SET_IDENTITY_MAP_ADDR` (Intel without unrestricted guest).
pub const KVM_IDENTITY_MAP: Range = Range::new(0xfffb_c000, PAGE_SIZE);
/// Three pages for `KVM_SET_TSS_ADDR` (Intel).
pub const KVM_TSS: Range = Range::new(0xfffb_d000, 3 * PAGE_SIZE);

// Ports.

/// First serial port (ttyS0).
pub const PORT_SERIAL: Range = Range::new(0x3f8, serial::LEN);
/// Keyboard controller; answers only as far as a reset through it needs.
pub const PORT_I8042: Range = Range::new(0x60, i8042::LEN);
/// ACPI sleep control, sleep status and reset registers of hardware-reduced ACPI.
pub const PORT_ACPI: Range = Range::new(0x600, acpi_pm::LEN);
/// The generic event device's event register.
pub const PORT_EVENTS: Range = Range::new(0x610, ged::LEN);

/// A byte for each processor that can come and go.
pub const PORT_CPUS: Range = Range::new(0x700, cpu_slots::LEN);

/// Sleep control register (ACPI 6.5, section 4.8.3.7).
pub const PORT_SLEEP_CONTROL: u16 = 0x600;
/// Sleep status register.
pub const PORT_SLEEP_STATUS: u16 = 0x601;
/// Reset register (ACPI 6.5, section 4.8.3.6).
pub const PORT_RESET: u16 = 0x602;

// The same facts in the widths that ACPI tables carry.

/// [`PORT_SERIAL`]'s first port.
pub const PORT_SERIAL_BASE: u16 = 0x3f8;
/// [`PORT_SERIAL`]'s length.
pub const PORT_SERIAL_LEN: u8 = 8;
/// [`PORT_EVENTS`]'s first port.
pub const PORT_EVENTS_BASE: u16 = 0x610;
/// [`PORT_EVENTS`]'s length.
pub const PORT_EVENTS_LEN: u8 = 4;
/// [`PORT_CPUS`]'s first port.
pub const PORT_CPUS_BASE: u16 = 0x700;
/// [`PORT_CPUS`]'s length.
pub const PORT_CPUS_LEN: u16 = 256;
/// [`GENERATION_ID`]'s address.
pub const GENERATION_ID_ADDRESS: u32 = 0xe_f000;
/// [`IOAPIC`]'s address.
pub const IOAPIC_ADDRESS: u32 = 0xfec0_0000;
/// [`LOCAL_APIC`]'s address.
pub const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;
/// [`PCI_ECAM`]'s address.
pub const PCI_ECAM_ADDRESS: u32 = 0xe000_0000;
/// [`PCI_ECAM`]'s length.
pub const PCI_ECAM_LEN: u32 = 1 << 20;
/// [`PCI_WINDOW_32`]'s first address.
pub const PCI_WINDOW_32_FIRST: u32 = 0xc000_0000;
/// [`PCI_WINDOW_32`]'s last address.
pub const PCI_WINDOW_32_LAST: u32 = 0xdfff_ffff;

const _: () = assert!(PORT_SLEEP_CONTROL as u64 == PORT_ACPI.base + acpi_pm::SLEEP_CONTROL);
const _: () = assert!(PORT_SLEEP_STATUS as u64 == PORT_ACPI.base + acpi_pm::SLEEP_STATUS);
const _: () = assert!(PORT_RESET as u64 == PORT_ACPI.base + acpi_pm::RESET);
const _: () = assert!(PORT_SERIAL_BASE as u64 == PORT_SERIAL.base);
const _: () = assert!(PORT_SERIAL_LEN as u64 == PORT_SERIAL.len);
const _: () = assert!(PORT_EVENTS_BASE as u64 == PORT_EVENTS.base);
const _: () = assert!(PORT_EVENTS_LEN as u64 == PORT_EVENTS.len);
const _: () = assert!(PORT_CPUS_BASE as u64 == PORT_CPUS.base);
const _: () = assert!(PORT_CPUS_LEN as u64 == PORT_CPUS.len);
const _: () = assert!(GENERATION_ID_ADDRESS as u64 == GENERATION_ID.base);
const _: () = assert!(IOAPIC_ADDRESS as u64 == IOAPIC.base);
const _: () = assert!(LOCAL_APIC_ADDRESS as u64 == LOCAL_APIC.base);
const _: () = assert!(PCI_ECAM_ADDRESS as u64 == PCI_ECAM.base);
const _: () = assert!(PCI_ECAM_LEN as u64 == PCI_ECAM.len);
const _: () = assert!(PCI_WINDOW_32_FIRST as u64 == PCI_WINDOW_32.base);
const _: () = assert!(PCI_WINDOW_32_LAST as u64 == PCI_WINDOW_32.end() - 1);

// Interrupt lines (GSIs of the IOAPIC).

/// The serial port's line.
pub const GSI_SERIAL: u32 = 4;
/// The generic event device's line.
pub const GSI_EVENTS: u32 = 5;

const _: () = assert!(GDT.before(ZERO_PAGE));
const _: () = assert!(ZERO_PAGE.before(PAGE_TABLES));
const _: () = assert!(PAGE_TABLES.before(COMMAND_LINE));
const _: () = assert!(COMMAND_LINE.end() <= CONVENTIONAL_END);
const _: () = assert!(CONVENTIONAL_END <= ACPI_TABLES.base);
const _: () = assert!(ACPI_TABLES.before(GENERATION_ID));
const _: () = assert!(GENERATION_ID.before(SMBIOS));
const _: () = assert!(GENERATION_ID.base.is_multiple_of(PAGE_SIZE));
const _: () = assert!(SMBIOS.before(RESET_ENTRY));
const _: () = assert!(RESET_ENTRY.end() <= HIGH_MEMORY);
const _: () = assert!(HIGH_MEMORY < LOW_RAM_END);
const _: () = assert!(LOW_RAM_END <= PCI_WINDOW_32.base);
const _: () = assert!(PCI_WINDOW_32.before(PCI_ECAM));
const _: () = assert!(PCI_ECAM.before(IOAPIC));
const _: () = assert!(
    PCI_ECAM.base.is_multiple_of(1 << 28),
    "MCFG bases are 256 MiB aligned"
);
const _: () = assert!(IOAPIC.before(LOCAL_APIC));
const _: () = assert!(LOCAL_APIC.before(KVM_IDENTITY_MAP));
const _: () = assert!(KVM_IDENTITY_MAP.before(KVM_TSS));
const _: () = assert!(KVM_TSS.end() <= HIGH_RAM);
const _: () = assert!(HIGH_RAM < HIGH_RAM_END);
const _: () = assert!(PCI_WINDOW_64.end() <= 1 << 39);
const _: () = assert!(PCI_MAX_DEVICES as u64 * PCI_BAR_STRIDE <= PCI_WINDOW_32.len);
const _: () = assert!(PAGE_TABLES.base.is_multiple_of(PAGE_SIZE));
const _: () = assert!(ZERO_PAGE.base.is_multiple_of(PAGE_SIZE));
const _: () = assert!(PORT_I8042.before(PORT_SERIAL));
const _: () = assert!(PORT_SERIAL.before(PORT_ACPI));
const _: () = assert!(PORT_ACPI.before(PORT_EVENTS));
const _: () = assert!(PORT_EVENTS.before(PORT_CPUS));

/// The largest guest memory that fits around the holes, in bytes.
pub const MAX_RAM: u64 = LOW_RAM_END + (HIGH_RAM_END - HIGH_RAM);

/// The ranges that `len` bytes of guest memory occupy: below the device hole, then above 4 GiB.
#[must_use]
pub fn ram_ranges(len: u64) -> Vec<Range> {
    let low = Range::new(0, len.min(LOW_RAM_END));
    let beyond = len - low.len;
    let high = (beyond > 0).then(|| Range::new(HIGH_RAM, beyond));
    std::iter::once(low).chain(high).collect()
}

/// Where `plugged` bytes come to lie in a machine that begins with `len` bytes, if there is room:
/// the region is as long in whole steps.
#[must_use]
pub fn plugged_ram_range(len: u64, plugged: u64) -> Option<Range> {
    let end = ram_ranges(len).last().map_or(0, |range| range.end());
    let base = end
        .max(HIGH_RAM)
        .checked_next_multiple_of(PLUGGED_RAM_ALIGNMENT)?;
    let len = plugged.checked_next_multiple_of(PLUGGED_RAM_STEP)?;
    let fits = base.checked_add(len)? <= HIGH_RAM_END;
    fits.then_some(Range { base, len })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_memory_is_one_range_from_zero() {
        assert_eq!(ram_ranges(128 * MIB), [Range::new(0, 128 * MIB)]);
        assert_eq!(ram_ranges(3 * GIB), [Range::new(0, 3 * GIB)]);
    }

    #[test]
    fn memory_beyond_three_gib_continues_above_four() {
        let ranges = ram_ranges(8 * GIB);
        assert_eq!(
            ranges,
            [Range::new(0, 3 * GIB), Range::new(4 * GIB, 5 * GIB)]
        );
    }

    #[test]
    fn memory_is_plugged_behind_all_other_and_never_where_devices_are() {
        assert_eq!(
            plugged_ram_range(512 * MIB, 512 * MIB),
            Some(Range::new(4 * GIB, 512 * MIB))
        );
        assert_eq!(
            plugged_ram_range(8 * GIB + PAGE_SIZE, GIB + 1),
            Some(Range::new(10 * GIB, GIB + 128 * MIB))
        );
        assert_eq!(plugged_ram_range(8 * GIB, 400 * GIB), None);
        assert_eq!(plugged_ram_range(8 * GIB, u64::MAX), None);
    }
}
