//! What a guest finds in its memory when it begins.

use std::path::PathBuf;

use podvisor_devices::legacy::CpuSlots;
use vm_memory::GuestAddress;

use crate::arch::acpi::{self, AcpiConfig};
use crate::arch::boot_params::BootParams;
use crate::arch::cpuid::Template;
use crate::arch::{entry, loader};
use crate::config::{Console, KernelArgs, MemorySize, VmConfig};
use crate::generation;
use crate::machine::StartError;
use crate::memory::GuestRam;
use crate::smbios::{self, SmbiosConfig};

/// All that goes into memory, at the start and again at each reset.
pub(crate) struct BootSource {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    kernel_args: KernelArgs,
    memory: MemorySize,
    acpi: AcpiConfig,
    smbios: Option<(SmbiosConfig, smbios::Shape)>,
    generation_id: Option<u128>,
}

impl BootSource {
    /// What `config` names, for processors of `template`.
    pub(crate) fn of(config: &VmConfig, template: &Template) -> Self {
        let shape = smbios::Shape {
            topology: config.processors.topology(),
            processor_id: template.processor_id(),
            memory: config.memory,
        };
        Self {
            kernel: config.kernel.clone(),
            initrd: config.initrd.clone(),
            kernel_args: config.kernel_args.clone(),
            memory: config.memory,
            acpi: acpi_config(config),
            smbios: config.smbios.clone().map(|identity| (identity, shape)),
            generation_id: config.generation_id,
        }
    }

    /// Fills guest memory with all that the kernel finds at its entry, which it tells. `slots` are those
    /// of a machine whose processors have changed since it began.
    pub(crate) fn load(
        &self,
        ram: &GuestRam,
        slots: Option<&CpuSlots>,
    ) -> Result<GuestAddress, StartError> {
        let memory = ram.guest_memory();
        let kernel = loader::load_kernel(&self.kernel, memory)?;
        let load_initrd = |path| loader::load_initrd(path, memory, &kernel);
        let initrd = self.initrd.as_deref().map(load_initrd).transpose()?;
        let rsdp = acpi::write(&self.acpi, &self.present(slots), memory)?;
        if let Some((identity, shape)) = &self.smbios {
            smbios::write(identity, *shape, memory)?;
        }
        if let Some(id) = self.generation_id {
            generation::write(id, memory).map_err(StartError::BootStructures)?;
        }
        let params = BootParams {
            kernel: &kernel,
            initrd,
            kernel_args: &self.kernel_args,
            memory: self.memory,
            has_pci: self.acpi.has_pci,
            rsdp,
        };
        params.write(memory).map_err(StartError::BootStructures)?;
        entry::write_tables(memory).map_err(StartError::BootStructures)?;
        Ok(kernel.entry)
    }
}

impl BootSource {
    /// Which processors there are, by number.
    fn present(&self, slots: Option<&CpuSlots>) -> Vec<bool> {
        match slots {
            Some(slots) => slots.slots().iter().map(|slot| slot.present).collect(),
            None => vec![true; self.acpi.processors.booted.get().into()],
        }
    }
}

/// Whether the machine has what `config` asks for, as ACPI describes it.
pub(crate) fn acpi_config(config: &VmConfig) -> AcpiConfig {
    AcpiConfig {
        processors: (&config.processors).into(),
        has_pci: !config.devices.is_empty()
            || config.hot_memory.is_some()
            || config.watchdog.is_some(),
        has_serial: config.console == Console::Terminal,
        has_button: config.power_button,
        has_generation: config.generation_id.is_some(),
        numa: config.numa.clone(),
    }
}
