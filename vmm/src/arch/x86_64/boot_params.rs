//! The zero page (`struct boot_params`) and the command line, as the 64-bit boot protocol wants
//! them (Documentation/arch/x86/{boot,zero-page}.rst, arch/x86/include/uapi/asm/bootparam.h).

use podvisor_devices::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout;
use super::loader::{LoadedInitrd, LoadedKernel};
use crate::config::{KernelArgs, MemorySize};

// Offsets in the zero page.
const ACPI_RSDP_ADDR: usize = 0x070;
const E820_ENTRIES: usize = 0x1e8;
const SETUP_HEADER: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const BOOT_VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const KERNEL_ALIGNMENT: usize = 0x230;
const CMDLINE_SIZE: usize = 0x238;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_LEN: usize = 20;

/// A boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// The version whose fields are filled in for a kernel without a header of its own.
const PROTOCOL_VERSION: u16 = 0x020f;
const PHYSICAL_ALIGN: u32 = 0x20_0000;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

const ZERO_PAGE_LEN: usize = 4096;
const _: () = assert!(layout::ZERO_PAGE.len == ZERO_PAGE_LEN as u64);

/// The zero page under construction.
struct ZeroPage {
    bytes: [u8; ZERO_PAGE_LEN],
    e820_entries: u8,
}

impl ZeroPage {
    fn new() -> Self {
        Self {
            bytes: [0; ZERO_PAGE_LEN],
            e820_entries: 0,
        }
    }

    /// Writes `value` at `offset`; what would lie behind the page is a defect of the callers
    /// in this file and is left out.
    fn put(&mut self, offset: usize, value: &[u8]) {
        debug_assert!(offset + value.len() <= ZERO_PAGE_LEN, "offset {offset:#x}");
        if let Some(place) = self.bytes.get_mut(offset..offset + value.len()) {
            place.copy_from_slice(value);
        }
    }

    fn add_e820(&mut self, range: layout::Range, kind: u32) {
        let offset = E820_TABLE + usize::from(self.e820_entries) * E820_ENTRY_LEN;
        self.put(offset, &range.base.to_le_bytes());
        self.put(offset + 8, &range.len.to_le_bytes());
        self.put(offset + 16, &kind.to_le_bytes());
        self.e820_entries += 1;
        self.put(E820_ENTRIES, &[self.e820_entries]);
    }

    fn put_memory_map(&mut self, memory: MemorySize, has_pci: bool) {
        let conventional = layout::Range {
            base: 0,
            len: layout::CONVENTIONAL_END,
        };
        self.add_e820(conventional, E820_RAM);
        let hole = layout::HIGH_MEMORY - layout::CONVENTIONAL_END;
        self.add_e820(
            layout::Range {
                base: layout::CONVENTIONAL_END,
                len: hole,
            },
            E820_RESERVED,
        );
        for range in layout::ram_ranges(memory.bytes()) {
            let base = range.base.max(layout::HIGH_MEMORY);
            self.add_e820(
                layout::Range {
                    base,
                    len: range.end() - base,
                },
                E820_RAM,
            );
        }
        if has_pci {
            // Linux uses the window only when the memory map reserves it as well.
            self.add_e820(layout::PCI_ECAM, E820_RESERVED);
        }
    }

    fn put_header(&mut self, kernel: &LoadedKernel) {
        match &kernel.setup_header {
            Some(header) => self.put(SETUP_HEADER, &header.0),
            None => {
                self.put(BOOT_FLAG, &0xaa55_u16.to_le_bytes());
                self.put(HEADER_MAGIC, b"HdrS");
                self.put(BOOT_VERSION, &PROTOCOL_VERSION.to_le_bytes());
                self.put(KERNEL_ALIGNMENT, &PHYSICAL_ALIGN.to_le_bytes());
                let len = u32::try_from(KernelArgs::MAX_LEN).unwrap_or(u32::MAX);
                self.put(CMDLINE_SIZE, &len.to_le_bytes());
            }
        }
        self.put(TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    }

    fn put_initrd(&mut self, initrd: LoadedInitrd) {
        // Both fit: the image lies below the device hole (asserted by the memory map).
        let field = |value: u64| u32::try_from(value).unwrap_or_default().to_le_bytes();
        self.put(RAMDISK_IMAGE, &field(initrd.base));
        self.put(RAMDISK_SIZE, &field(initrd.len));
    }
}

const _: () = assert!(layout::LOW_RAM_END <= u32::MAX as u64);
const _: () = assert!(layout::COMMAND_LINE.end() <= u32::MAX as u64);

/// What the zero page tells the kernel.
pub struct BootParams<'a> {
    /// The kernel in memory.
    pub kernel: &'a LoadedKernel,
    /// The initial image in memory, if there is one.
    pub initrd: Option<LoadedInitrd>,
    /// The command line.
    pub kernel_args: &'a KernelArgs,
    /// Size of guest memory.
    pub memory: MemorySize,
    /// Whether there is a PCI bus, whose configuration window must be reserved.
    pub has_pci: bool,
    /// Where the ACPI tables' root pointer lies.
    pub rsdp: GuestAddress,
}

impl BootParams<'_> {
    /// Writes zero page and command line to their places.
    ///
    /// # Errors
    /// When guest memory ends before those places.
    pub fn write(&self, memory: &GuestMemory) -> Result<(), GuestMemoryError> {
        let mut page = ZeroPage::new();
        page.put_header(self.kernel);
        page.put_memory_map(self.memory, self.has_pci);
        page.put(ACPI_RSDP_ADDR, &self.rsdp.0.to_le_bytes());
        if let Some(initrd) = self.initrd {
            page.put_initrd(initrd);
        }
        let command_line = u32::try_from(layout::COMMAND_LINE.base).unwrap_or_default();
        page.put(CMD_LINE_PTR, &command_line.to_le_bytes());
        memory.write_slice(&page.bytes, layout::ZERO_PAGE.start())?;
        let mut text = self.kernel_args.as_str().as_bytes().to_vec();
        text.push(0);
        memory.write_slice(&text, layout::COMMAND_LINE.start())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::loader::SetupHeader;
    use crate::memory::{GuestRam, MemoryBacking, RamPlan};

    const MEMORY: u64 = 8 << 30;

    fn zero_page(setup_header: Option<SetupHeader>, has_pci: bool) -> Vec<u8> {
        let size = MemorySize::from_bytes(MEMORY).unwrap();
        let ram = GuestRam::map(&RamPlan::new(size, MemoryBacking::Normal)).unwrap();
        let kernel = LoadedKernel {
            entry: GuestAddress(0x100_0000),
            end: 0x200_0000,
            setup_header,
        };
        let params = BootParams {
            kernel: &kernel,
            initrd: Some(LoadedInitrd {
                base: 0x700_0000,
                len: 0x1234,
            }),
            kernel_args: &KernelArgs::new("quiet").unwrap(),
            memory: size,
            has_pci,
            rsdp: layout::ACPI_TABLES.start(),
        };
        params.write(ram.guest_memory()).unwrap();
        let mut text = [0; 6];
        ram.guest_memory()
            .read_slice(&mut text, layout::COMMAND_LINE.start())
            .unwrap();
        assert_eq!(&text, b"quiet\0");
        let mut page = vec![0; ZERO_PAGE_LEN];
        ram.guest_memory()
            .read_slice(&mut page, layout::ZERO_PAGE.start())
            .unwrap();
        page
    }

    fn e820(page: &[u8]) -> Vec<(u64, u64, u32)> {
        let entries = page[E820_TABLE..]
            .chunks_exact(E820_ENTRY_LEN)
            .take(usize::from(page[E820_ENTRIES]));
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        entries
            .map(|e| {
                (
                    number(&e[..8]),
                    number(&e[8..16]),
                    u32::from_le_bytes(e[16..].try_into().unwrap()),
                )
            })
            .collect()
    }

    #[test]
    fn memory_map_lists_ram_around_the_holes() {
        let page = zero_page(None, true);
        let ram: Vec<_> = e820(&page)
            .into_iter()
            .filter(|entry| entry.2 == E820_RAM)
            .collect();
        let expected = [
            (0, 0x9_fc00, E820_RAM),
            (0x10_0000, 0xbff0_0000, E820_RAM),
            (0x1_0000_0000, 5 << 30, E820_RAM),
        ];
        assert_eq!(ram, expected);
    }

    #[test]
    fn configuration_window_is_reserved_only_with_pci() {
        let entry = (layout::PCI_ECAM.base, layout::PCI_ECAM.len, E820_RESERVED);
        assert!(e820(&zero_page(None, true)).contains(&entry));
        assert!(!e820(&zero_page(None, false)).contains(&entry));
    }

    #[test]
    fn a_kernels_own_header_is_kept_but_for_what_a_loader_fills_in() {
        let mut header = vec![0x5a; 0x268 - SETUP_HEADER];
        header[0] = 27;
        let page = zero_page(Some(SetupHeader(header)), false);
        assert_eq!(page[SETUP_HEADER], 27);
        assert_eq!(page[0x260], 0x5a);
        assert_eq!(page[TYPE_OF_LOADER], LOADER_UNDEFINED);
        assert_eq!(
            page[RAMDISK_IMAGE..RAMDISK_IMAGE + 8],
            [0, 0, 0, 7, 0x34, 0x12, 0, 0]
        );
        assert_eq!(page[CMD_LINE_PTR..CMD_LINE_PTR + 4], [0, 0, 2, 0]);
    }
}
