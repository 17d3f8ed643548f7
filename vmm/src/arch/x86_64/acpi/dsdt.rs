//! The differentiated system description table: the devices that no bus can enumerate.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name,
    Package, Path, ResourceTemplate, ZERO,
};
use acpi_tables::sdt::Sdt;
use podvisor_devices::legacy::acpi_pm;

use super::events;
use super::{AcpiConfig, DSDT_REVISION, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::arch::layout;

const HEADER_LEN: u32 = 36;

/// The table for `config`.
pub(super) fn build(config: &AcpiConfig) -> Table {
    let mut table = Sdt::new(
        *b"DSDT",
        HEADER_LEN,
        DSDT_REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    let mut aml = Vec::new();
    soft_off(&mut aml);
    if config.has_pci {
        pci_root(&mut aml);
    }
    if config.has_serial {
        serial_port(&mut aml);
    }
    events::append(config, &mut aml);
    table.append_slice(&aml);
    Table(table)
}

/// A table that is ready to be placed.
pub(super) struct Table(Sdt);

impl Aml for Table {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(self.0.as_slice());
    }
}

fn soft_off(aml: &mut Vec<u8>) {
    let package = Package::new(vec![&acpi_pm::SLEEP_TYPE_S5]);
    Name::new(Path::new("_S5_"), &package).to_aml_bytes(aml);
}

/// The root bridge with its windows, and the device that claims the configuration window:
/// Linux uses the window only when a motherboard resource has it.
fn pci_root(aml: &mut Vec<u8>) {
    let bus = AddressSpace::<u16>::new_bus_number(0, 0);
    let uncached = AddressSpaceCacheable::NotCacheable;
    let (first, last) = (layout::PCI_WINDOW_32_FIRST, layout::PCI_WINDOW_32_LAST);
    let low = AddressSpace::<u32>::new_memory(uncached, true, first, last, None);
    let window = layout::PCI_WINDOW_64;
    let high = AddressSpace::<u64>::new_memory(uncached, true, window.base, window.end() - 1, None);
    let resources = ResourceTemplate::new(vec![&bus, &low, &high]);
    Device::new(
        Path::new("_SB_.PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_SEG"), &ZERO),
            &Name::new(Path::new("_CRS"), &resources),
        ],
    )
    .to_aml_bytes(aml);

    let window = Memory32Fixed::new(true, layout::PCI_ECAM_ADDRESS, layout::PCI_ECAM_LEN);
    Device::new(
        Path::new("_SB_.MCFG"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&window])),
        ],
    )
    .to_aml_bytes(aml);
}

fn serial_port(aml: &mut Vec<u8>) {
    let (base, len) = (layout::PORT_SERIAL_BASE, layout::PORT_SERIAL_LEN);
    let ports = IO::new(base, base, 1, len);
    let line = Interrupt::new(true, true, false, false, layout::GSI_SERIAL);
    let resources = ResourceTemplate::new(vec![&ports, &line]);
    Device::new(
        Path::new("_SB_.COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &resources),
        ],
    )
    .to_aml_bytes(aml);
}
