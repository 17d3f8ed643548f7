//! ACPI tables of a hardware-reduced machine (ACPI 6.5, section 4.1): no power management
//! timer, no fixed events; a generic event device stands for what firmware would signal.

mod dsdt;
mod events;
mod locality;
mod processors;
mod raw;

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
use crate::numa::Numa;
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiConfig {
    /// Processors.
    pub processors: AcpiProcessors,
    /// Whether there is a PCI bus.
    pub has_pci: bool,
    /// Whether there is a serial port with an interrupt line. One without is better not
    /// described: Linux would poll it, some hundred exits a second for an idle guest.
    pub has_serial: bool,
    /// Whether there is a power button.
    pub has_button: bool,
    /// Whether there is a device that tells of copies.
    pub has_generation: bool,
    /// Which of processors and memory are close to each other; without, all are.
    pub numa: Option<Numa>,
}

/// Processors as the tables list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcpiProcessors {
    /// How many there are at the start.
    pub booted: Vcpus,
    /// Which APIC IDs they have.
    pub topology: Topology,
}

impl AcpiProcessors {
    /// Whether some can come and go.
    #[must_use]
    pub fn can_change(self) -> bool {
        self.booted < self.topology.possible()
    }
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
    pub fn has_lines(&self) -> bool {
        self.has_serial || self.has_events()
    }

    /// Whether there is a generic event device.
    #[must_use]
    pub fn has_events(&self) -> bool {
        self.has_button || self.has_generation || self.processors.can_change()
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

/// Writes all tables; the root pointer is the first. `present` says of each processor whether it is
/// there; those behind its end are not.
///
/// # Errors
/// [`AcpiError`] when they do not fit.
pub fn write(
    config: &AcpiConfig,
    present: &[bool],
    memory: &GuestMemory,
) -> Result<GuestAddress, AcpiError> {
    let bytes = build(config, present, layout::ACPI_TABLES.base);
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
fn build(config: &AcpiConfig, present: &[bool], base: u64) -> Vec<u8> {
    let mut tables = Tables::after_root_pointer(base);
    let dsdt = tables.add(&dsdt::build(config));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(tables.add(&fadt(dsdt)));
    xsdt.add_entry(tables.add(&madt(config, present)));
    if config.has_pci {
        let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        mcfg.add_ecam(layout::PCI_ECAM.base, 0, 0, 0);
        xsdt.add_entry(tables.add(&mcfg));
    }
    if let Some(numa) = &config.numa {
        let affinity = locality::affinity(numa, config.processors.topology);
        xsdt.add_entry(tables.add(&affinity));
        xsdt.add_entry(tables.add(&locality::distances(numa)));
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

fn madt(config: &AcpiConfig, present: &[bool]) -> impl Aml {
    let address = LocalInterruptController::Address(layout::LOCAL_APIC_ADDRESS);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, address);
    let processors = config.processors;
    for index in 0..processors.topology.possible().get() {
        let apic_id = processors.topology.apic_id(index);
        let status = match present.get(usize::from(index)) {
            Some(true) => EnabledStatus::Enabled,
            _ => EnabledStatus::DisabledOnlineCapable,
        };
        madt.add_structure(ProcessorLocalApic::new(index, apic_id, status));
    }
    if config.has_lines() {
        madt.add_structure(IoApic::new(0, layout::IOAPIC_ADDRESS, 0));
    }
    madt
}

#[cfg(test)]
mod tests;
