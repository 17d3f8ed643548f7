//! ACPI tables of a hardware-reduced machine (ACPI 6.5, section 4.1): no power management
//! timer, no fixed events; a generic event device stands for what firmware would signal.

mod dsdt;

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use podvisor_devices::GuestMemory;
use podvisor_devices::legacy::acpi_pm;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout;
use crate::config::Vcpus;
use crate::processors::{Processors, Topology};

const OEM_ID: [u8; 6] = *b"PODVSR";
const OEM_TABLE_ID: [u8; 8] = *b"PODVISOR";
const OEM_REVISION: u32 = layout::VERSION;
const DSDT_REVISION: u8 = 6;

// FADT, "IA-PC Boot Architecture Flags" (ACPI 6.5, table 5.11).
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;
const BOOT_ARCH_NO_ASPM: u16 = 1 << 4;
const BOOT_ARCH_NO_RTC: u16 = 1 << 5;

/// What the tables describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcpiConfig {
    /// Processors.
    pub processors: AcpiProcessors,
    /// Whether there is a PCI bus.
    pub has_pci: bool,
    /// Whether there is a serial port with an interrupt line. One without is better not
    /// described: Linux would poll it, some hundred exits a second for an idle guest.
    pub has_serial: bool,
    /// Whether there is a generic event device with a power button.
    pub has_events: bool,
}

/// Processors as the tables list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcpiProcessors {
    /// How many there are.
    pub booted: Vcpus,
    /// Which APIC IDs they have.
    pub topology: Topology,
}

impl From<&Processors> for AcpiProcessors {
    fn from(processors: &Processors) -> Self {
        Self {
            booted: processors.booted(),
            topology: processors.topology(),
        }
    }
}

impl AcpiConfig {
    /// Whether any device interrupts through a line. Without one the IOAPIC stays out of the
    /// tables: Linux reads and writes all of its pins at boot, which takes some 300 exits.
    #[must_use]
    pub fn has_lines(self) -> bool {
        self.has_serial || self.has_events
    }
}

/// Why the tables could not be written.
#[derive(Debug, Error)]
pub enum AcpiError {
    /// The tables are larger than their place; a defect of the memory map.
    #[error("{0} bytes of ACPI tables do not fit their place")]
    NoRoom(usize),
    /// Guest memory ends before their place.
    #[error("cannot write the ACPI tables")]
    Memory(#[source] GuestMemoryError),
}

/// Writes all tables; the root pointer is the first.
///
/// # Errors
/// [`AcpiError`] when they do not fit.
pub fn write(config: AcpiConfig, memory: &GuestMemory) -> Result<GuestAddress, AcpiError> {
    let bytes = build(config, layout::ACPI_TABLES.base);
    if bytes.len() as u64 > layout::ACPI_TABLES.len {
        return Err(AcpiError::NoRoom(bytes.len()));
    }
    let base = layout::ACPI_TABLES.start();
    memory
        .write_slice(&bytes, base)
        .map_err(AcpiError::Memory)?;
    Ok(base)
}

/// All tables as they lie in memory from `base` on.
fn build(config: AcpiConfig, base: u64) -> Vec<u8> {
    let mut tables = Tables::after_root_pointer(base);
    let dsdt = tables.add(&dsdt::build(config));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(tables.add(&fadt(dsdt)));
    xsdt.add_entry(tables.add(&madt(config)));
    if config.has_pci {
        let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        mcfg.add_ecam(layout::PCI_ECAM.base, 0, 0, 0);
        xsdt.add_entry(tables.add(&mcfg));
    }
    let xsdt = tables.add(&xsdt);
    tables.finish(&Rsdp::new(OEM_ID, xsdt))
}

/// Tables one behind the other.
struct Tables {
    base: u64,
    bytes: Vec<u8>,
}

impl Tables {
    const ALIGN: usize = 16;

    fn after_root_pointer(base: u64) -> Self {
        let bytes = vec![0; Rsdp::len().next_multiple_of(Self::ALIGN)];
        Self { base, bytes }
    }

    /// Appends a table and tells its address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        let address = self.base + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        self.bytes
            .resize(self.bytes.len().next_multiple_of(Self::ALIGN), 0);
        address
    }

    fn finish(self, root: &Rsdp) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.bytes.len());
        root.to_aml_bytes(&mut all);
        all.extend(self.bytes.into_iter().skip(Rsdp::len()));
        all
    }
}

fn register(port: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        u64::from(port),
    )
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = (BOOT_ARCH_NO_VGA | BOOT_ARCH_NO_ASPM | BOOT_ARCH_NO_RTC).into();
    fadt.sleep_control_reg = register(layout::PORT_SLEEP_CONTROL);
    fadt.sleep_status_reg = register(layout::PORT_SLEEP_STATUS);
    fadt.reset_reg = register(layout::PORT_RESET);
    fadt.reset_value = acpi_pm::RESET_VALUE;
    fadt.finalize()
}

fn madt(config: AcpiConfig) -> impl Aml {
    let address = LocalInterruptController::Address(layout::LOCAL_APIC_ADDRESS);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, address);
    let processors = config.processors;
    for index in 0..processors.booted.get() {
        let apic_id = processors.topology.apic_id(index);
        madt.add_structure(ProcessorLocalApic::new(
            index,
            apic_id,
            EnabledStatus::Enabled,
        ));
    }
    if config.has_lines() {
        madt.add_structure(IoApic::new(0, layout::IOAPIC_ADDRESS, 0));
    }
    madt
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0xe_0000;

    fn cores(vcpus: u32) -> AcpiProcessors {
        (&Processors::from(Vcpus::try_from(vcpus).unwrap())).into()
    }

    fn tables(vcpus: u32, has_pci: bool) -> Vec<u8> {
        build(
            AcpiConfig {
                processors: cores(vcpus),
                has_pci,
                has_serial: true,
                has_events: true,
            },
            BASE,
        )
    }

    fn u32_at(bytes: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    fn table_at(bytes: &[u8], address: u64) -> &[u8] {
        let start = usize::try_from(address - BASE).unwrap();
        let len = u32_at(bytes, start + 4) as usize;
        &bytes[start..start + len]
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes
            .iter()
            .fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    /// Every table reachable from the root pointer, by signature.
    fn reachable(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        assert_eq!(&bytes[..8], b"RSD PTR ");
        assert_eq!(sum(&bytes[..20]), 0);
        assert_eq!(sum(&bytes[..36]), 0);
        let xsdt = table_at(bytes, u64_at(bytes, 24));
        let mut found: Vec<_> = xsdt[36..]
            .chunks_exact(8)
            .map(|e| table_at(bytes, u64_at(e, 0)))
            .collect();
        let fadt = found.iter().find(|t| t.starts_with(b"FACP")).unwrap();
        found.push(table_at(bytes, u64_at(fadt, 140)));
        found.push(xsdt);
        found
            .iter()
            .map(|t| (String::from_utf8_lossy(&t[..4]).into_owned(), t.to_vec()))
            .collect()
    }

    #[test]
    fn all_tables_are_reachable_and_sum_to_zero() {
        let tables = reachable(&tables(4, true));
        let names: Vec<_> = tables.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["FACP", "APIC", "MCFG", "DSDT", "XSDT"]);
        for (name, bytes) in &tables {
            assert_eq!(sum(bytes), 0, "{name}");
        }
    }

    #[test]
    fn a_machine_without_pci_has_no_configuration_window() {
        assert!(
            reachable(&tables(1, false))
                .iter()
                .all(|(name, _)| name != "MCFG")
        );
    }

    #[test]
    fn the_largest_machine_fits_its_place() {
        let bytes = tables(u32::from(Vcpus::MAX), true);
        assert!(bytes.len() as u64 <= layout::ACPI_TABLES.len);
        let (_, madt) = reachable(&bytes)
            .into_iter()
            .find(|(name, _)| name == "APIC")
            .unwrap();
        assert_eq!(madt.len(), 44 + 8 * 254 + 12);
    }

    #[test]
    fn the_ioapic_is_there_only_for_devices_with_lines() {
        let config = AcpiConfig {
            processors: cores(1),
            has_pci: true,
            has_serial: false,
            has_events: false,
        };
        let tables = reachable(&build(config, BASE));
        let (_, madt) = tables.iter().find(|(name, _)| name == "APIC").unwrap();
        assert_eq!(madt.len(), 44 + 8);
    }

    #[test]
    fn processors_have_the_apic_ids_of_their_topology() {
        let topology: Topology = "2:3:1".parse().unwrap();
        let processors = Processors::new(Vcpus::try_from(6).unwrap(), topology).unwrap();
        let config = AcpiConfig {
            processors: (&processors).into(),
            has_pci: false,
            has_serial: false,
            has_events: false,
        };
        let tables = reachable(&build(config, BASE));
        let (_, madt) = tables.iter().find(|(name, _)| name == "APIC").unwrap();
        let listed: Vec<_> = madt[44..].chunks_exact(8).map(|e| (e[2], e[3])).collect();
        assert_eq!(listed, [(0, 0), (1, 1), (2, 2), (3, 4), (4, 5), (5, 6)]);
    }
}
