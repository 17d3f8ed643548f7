//! All of a pod's annotations, read and checked against one another.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::str::FromStr;

use crate::definition::Applies;
use crate::error::{AnnotationError, ValueError};
use crate::key::{Key, PREFIX};
use crate::value::address::PciSlot;
use crate::value::boot::{BootDevice, BootKind};
use crate::value::cloud_init::CloudInit;
use crate::value::cpu::{CpuModel, CpuPinning, CpuTopology, Numa, Vcpus};
use crate::value::disk::Disk;
use crate::value::guest::{ConsoleKind, KernelArgs, PowerAction, RngRate, WatchdogTimeout};
use crate::value::memory::{Balloon, Hugepages, MemorySize};
use crate::value::nic::Nic;
use crate::value::smbios::Smbios;
use crate::value::ssh_key::SshKey;
use crate::value::yaml;

/// The interface that every pod with a network has.
const FIRST_INTERFACE: &str = "eth0";

/// What a pod asks for by annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    /// `cpus`
    pub cpus: Option<Vcpus>,
    /// `max-cpus`
    pub max_cpus: Option<Vcpus>,
    /// `memory`
    pub memory: Option<MemorySize>,
    /// `max-memory`
    pub max_memory: Option<MemorySize>,
    /// `cpu-topology`
    pub cpu_topology: Option<CpuTopology>,
    /// `cpu-model`
    pub cpu_model: Option<CpuModel>,
    /// `cpu-pinning`
    pub cpu_pinning: Option<CpuPinning>,
    /// `numa`
    pub numa: Option<Numa>,
    /// `hugepages`
    pub hugepages: Option<Hugepages>,
    /// `kernel-args`
    pub kernel_args: KernelArgs,
    /// `boot`
    pub boot: Option<BootKind>,
    /// `disks`: no two of one path, serial number or PCI device.
    pub disks: Vec<Disk>,
    /// `nics`: no two of one name, address or PCI device.
    pub nics: Vec<Nic>,
    /// `boot-order`: none twice.
    pub boot_order: Vec<BootDevice>,
    /// `cloud-init`
    pub cloud_init: Option<CloudInit>,
    /// `ssh-keys`
    pub ssh_keys: Vec<SshKey>,
    /// `smbios`
    pub smbios: Smbios,
    /// `console`
    pub console: Option<ConsoleKind>,
    /// `rng`
    pub rng: Option<RngRate>,
    /// `balloon`
    pub balloon: Option<Balloon>,
    /// `on-poweroff`
    pub on_poweroff: Option<PowerAction>,
    /// `on-reboot`
    pub on_reboot: Option<PowerAction>,
    /// `watchdog`
    pub watchdog: Option<WatchdogTimeout>,
    /// Every key that was given, with its value as it was written.
    pub given: BTreeMap<Key, String>,
}

impl Annotations {
    /// Takes ours out of all of a pod's annotations.
    ///
    /// # Errors
    /// [`AnnotationError`] for the first key that cannot be honoured.
    pub fn parse<'a>(
        all: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<Self, AnnotationError> {
        let mut annotations = Self::default();
        let ours: BTreeMap<_, _> = all
            .into_iter()
            .filter(|(key, _)| key.starts_with(PREFIX))
            .collect();
        for (name, value) in ours {
            let key = Key::named(name).ok_or_else(|| AnnotationError::UnknownKey {
                key: name.clone(),
                nearest: Key::nearest(name),
            })?;
            annotations
                .read(key, value)
                .map_err(|reason| AnnotationError::Value { key, reason })?;
            annotations.given.insert(key, value.clone());
        }
        annotations.check_together()?;
        Ok(annotations)
    }

    /// The keys that were given and are for machines only.
    pub fn for_machines_only(&self) -> impl Iterator<Item = Key> {
        let keys = self.given.keys().copied();
        keys.filter(|key| key.definition().applies == Applies::Machine)
    }

    fn read(&mut self, key: Key, value: &str) -> Result<(), String> {
        match key {
            Key::Cpus => self.cpus = Some(one(value)?),
            Key::MaxCpus => self.max_cpus = Some(one(value)?),
            Key::Memory => self.memory = Some(one(value)?),
            Key::MaxMemory => self.max_memory = Some(one(value)?),
            Key::CpuTopology => self.cpu_topology = Some(one(value)?),
            Key::CpuModel => self.cpu_model = Some(one(value)?),
            Key::CpuPinning => self.cpu_pinning = Some(one(value)?),
            Key::Numa => self.numa = Some(one(value)?),
            Key::Hugepages => self.hugepages = Some(one(value)?),
            Key::KernelArgs => self.kernel_args = one(value)?,
            Key::Boot => self.boot = Some(one(value)?),
            Key::Disks => self.disks = disks(value)?,
            Key::Nics => self.nics = nics(value)?,
            Key::BootOrder => self.boot_order = boot_order(value)?,
            Key::CloudInit => self.cloud_init = Some(one(value)?),
            Key::SshKeys => self.ssh_keys = ssh_keys(value)?,
            Key::Smbios => self.smbios = smbios(value)?,
            Key::Console => self.console = Some(one(value)?),
            Key::Rng => self.rng = Some(one(value)?),
            Key::Balloon => self.balloon = Some(one(value)?),
            Key::OnPoweroff => self.on_poweroff = Some(one(value)?),
            Key::OnReboot => self.on_reboot = Some(one(value)?),
            Key::Watchdog => self.watchdog = Some(one(value)?),
        }
        Ok(())
    }

    /// The rules that take more than one key.
    fn check_together(&self) -> Result<(), AnnotationError> {
        self.check_order(Key::MaxCpus, self.max_cpus, Key::Cpus, self.cpus)?;
        self.check_order(Key::MaxMemory, self.max_memory, Key::Memory, self.memory)?;
        self.check_topology()?;
        self.check_pci()?;
        self.check_boot_order()?;
        let machine_only = self.for_machines_only().next();
        match (self.boot, machine_only) {
            (Some(BootKind::Container), Some(key)) => Err(self.conflict(
                key,
                Key::Boot,
                "it is for machine pods, and this one is not to be one",
            )),
            _ => Ok(()),
        }
    }

    fn check_order<T: PartialOrd + Display>(
        &self,
        most_key: Key,
        most: Option<T>,
        least_key: Key,
        least: Option<T>,
    ) -> Result<(), AnnotationError> {
        match (most, least) {
            (Some(most), Some(least)) if most < least => {
                Err(self.conflict(most_key, least_key, format!("it must be at least {least}")))
            }
            _ => Ok(()),
        }
    }

    fn check_topology(&self) -> Result<(), AnnotationError> {
        let Some(product) = self.cpu_topology.map(CpuTopology::vcpus) else {
            return Ok(());
        };
        match (self.max_cpus, self.cpus) {
            (Some(most), _) if product != most => Err(self.conflict(
                Key::CpuTopology,
                Key::MaxCpus,
                format!("the product must be {most}"),
            )),
            (None, Some(count)) if product < count => Err(self.conflict(
                Key::CpuTopology,
                Key::Cpus,
                format!("the product must be at least {count}"),
            )),
            _ => Ok(()),
        }
    }

    /// Disks and network cards share a bus. Within each list the addresses differ already.
    fn check_pci(&self) -> Result<(), AnnotationError> {
        let taken: BTreeSet<PciSlot> = self.disks.iter().filter_map(|disk| disk.pci).collect();
        let twice = self
            .nics
            .iter()
            .filter_map(|nic| nic.pci)
            .find(|pci| taken.contains(pci));
        match twice {
            Some(pci) => Err(self.conflict(
                Key::Nics,
                Key::Disks,
                format!("PCI device {pci} is taken by a disk"),
            )),
            None => Ok(()),
        }
    }

    fn check_boot_order(&self) -> Result<(), AnnotationError> {
        let is_known = |name: &str| {
            name == FIRST_INTERFACE || self.nics.iter().any(|nic| nic.name.as_str() == name)
        };
        let unknown = self.boot_order.iter().find_map(|device| match device {
            BootDevice::Nic(name) if !is_known(name.as_str()) => Some(name),
            BootDevice::Nic(_) | BootDevice::Disk(_) => None,
        });
        match unknown {
            Some(name) => Err(self.conflict(
                Key::BootOrder,
                Key::Nics,
                format!(
                    "interface {name:?} is neither {FIRST_INTERFACE} nor named there",
                    name = name.as_str()
                ),
            )),
            None => Ok(()),
        }
    }

    fn conflict(&self, key: Key, other: Key, rule: impl Into<String>) -> AnnotationError {
        let value = self.given.get(&key).map(String::as_str).unwrap_or_default();
        AnnotationError::conflict(key, value, other, rule)
    }
}

fn one<T: FromStr<Err = ValueError>>(value: &str) -> Result<T, String> {
    value.parse().map_err(|error: ValueError| error.to_string())
}

fn disks(value: &str) -> Result<Vec<Disk>, String> {
    let disks: Vec<Disk> = yaml::read_list(value, Disk::MAX_COUNT)?;
    unique("path", disks.iter().map(|disk| Some(&disk.path)))?;
    unique("serial", disks.iter().map(|disk| disk.serial.as_ref()))?;
    unique("pci", disks.iter().map(|disk| disk.pci))?;
    Ok(disks)
}

fn nics(value: &str) -> Result<Vec<Nic>, String> {
    let nics: Vec<Nic> = yaml::read_list(value, Nic::MAX_COUNT)?;
    unique("name", nics.iter().map(|nic| Some(&nic.name)))?;
    unique("mac", nics.iter().map(|nic| nic.mac))?;
    unique("pci", nics.iter().map(|nic| nic.pci))?;
    Ok(nics)
}

fn boot_order(value: &str) -> Result<Vec<BootDevice>, String> {
    let order = yaml::read_list(value, Disk::MAX_COUNT + Nic::MAX_COUNT)?;
    unique("", order.iter().map(Some))?;
    Ok(order)
}

fn ssh_keys(value: &str) -> Result<Vec<SshKey>, String> {
    let is_list = value.trim_start().starts_with(['-', '[']);
    let keys: Vec<SshKey> = if is_list {
        yaml::read_list(value, SshKey::MAX_COUNT)?
    } else {
        let lines = value.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(one).collect::<Result<_, _>>()?
    };
    if keys.len() > SshKey::MAX_COUNT {
        return Err(format!(
            "{} keys: at most {} are allowed",
            keys.len(),
            SshKey::MAX_COUNT
        ));
    }
    unique("", keys.iter().map(Some))?;
    Ok(keys)
}

fn smbios(value: &str) -> Result<Smbios, String> {
    let smbios: Smbios = yaml::read(value)?;
    let count = smbios.oem_strings.len();
    if count > Smbios::MAX_OEM_STRINGS {
        return Err(format!(
            "oem-strings: {count} entries: at most {} are allowed",
            Smbios::MAX_OEM_STRINGS
        ));
    }
    Ok(smbios)
}

/// Checks that no two entries have the same value of a field.
fn unique<T: Ord + Display>(
    field: &str,
    values: impl Iterator<Item = Option<T>>,
) -> Result<(), String> {
    let mut seen = BTreeMap::new();
    for (index, value) in values.enumerate() {
        let Some(value) = value else { continue };
        if let Some(first) = seen.get(&value) {
            let dot = if field.is_empty() { "" } else { "." };
            return Err(format!(
                "[{index}]{dot}{field}: {value} is that of [{first}] already: each must be another"
            ));
        }
        seen.insert(value, index);
    }
    Ok(())
}
