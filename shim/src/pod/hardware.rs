//! What a pod says of its machine's processors, memory and name plates.

use std::num::NonZeroU32;

use podvisor_annotations::Annotations;
use podvisor_annotations::value::cpu::CpuModel as Model;
use podvisor_annotations::value::memory::Hugepages;
use podvisor_annotations::value::smbios::{Smbios, SmbiosString};
use podvisor_vmm::config::ConfigError;
use podvisor_vmm::smbios::{
    BoardIdentity, ChassisIdentity, OemString, OemStrings, SmbiosText, SystemIdentity, TextError,
    Uuid,
};
use podvisor_vmm::{CpuLevel, CpuModel, MemoryBacking, Processors, SmbiosConfig, Topology};
use thiserror::Error;

use super::room::Room;
use crate::guest::extras::Extras;

/// Hardware that a machine cannot have.
#[derive(Debug, Error)]
pub enum HardwareError {
    /// Processors do not fit together.
    #[error("podvisor.io/cpu-topology")]
    Processors(#[from] ConfigError),
    /// The topology is for another number of processors.
    #[error(
        "podvisor.io/cpu-topology: {topology} is for {possible} processors, the machine can have {vcpus}: \
         set podvisor.io/max-cpus, podvisor.io/cpus or the CPU limit to as many"
    )]
    Topology {
        /// What was given.
        topology: String,
        /// How many it is for.
        possible: u8,
        /// How many there are.
        vcpus: u8,
    },
    /// A text is too long for its table.
    #[error("podvisor.io/smbios")]
    Text(#[from] TextError),
}

/// The processors of a machine with that room.
///
/// # Errors
/// [`HardwareError`].
pub fn processors(annotations: &Annotations, room: Room) -> Result<Processors, HardwareError> {
    let topology = match annotations.cpu_topology {
        None => Topology::of_cores(room.most.vcpus),
        Some(given) => {
            let [sockets, cores, threads] =
                [given.sockets(), given.cores(), given.threads()].map(u32::from);
            let topology = Topology::new(sockets, cores, threads)?;
            if topology.possible() != room.most.vcpus {
                return Err(HardwareError::Topology {
                    topology: given.to_string(),
                    possible: topology.possible().get(),
                    vcpus: room.most.vcpus.get(),
                });
            }
            topology
        }
    };
    let mut processors = Processors::new(room.booted.vcpus, topology)?;
    processors.model = match annotations.cpu_model {
        None | Some(Model::Host) => CpuModel::Host,
        Some(Model::V2) => CpuModel::Level(CpuLevel::V2),
        Some(Model::V3) => CpuModel::Level(CpuLevel::V3),
        Some(Model::V4) => CpuModel::Level(CpuLevel::V4),
    };
    Ok(processors)
}

/// What guest memory lies in; `transparent` is the node's own choice for pods that say nothing.
pub fn memory_backing(annotations: &Annotations, transparent: bool) -> MemoryBacking {
    match (annotations.hugepages, transparent) {
        (None, true) | (Some(Hugepages::Thp), _) => MemoryBacking::TransparentHugePages,
        (None, false) | (Some(Hugepages::None), _) => MemoryBacking::Normal,
        (Some(Hugepages::Mi2), _) => MemoryBacking::HugePages2Mi,
        (Some(Hugepages::Gi1), _) => MemoryBacking::HugePages1Gi,
    }
}

/// A machine's entropy, balloon and console.
pub fn extras(annotations: &Annotations) -> Extras {
    let usual = Extras::default();
    let rate = annotations.rng.map(|rate| rate.bytes());
    Extras {
        // More than the device can count is no limit to anybody.
        rng: rate.and_then(|rate| NonZeroU32::new(u32::try_from(rate).unwrap_or(u32::MAX))),
        balloon: annotations.balloon.unwrap_or(usual.balloon),
        console: annotations.console.unwrap_or(usual.console),
    }
}

/// What a machine says it is: what the pod says, and else who the pod is.
///
/// # Errors
/// [`HardwareError::Text`].
pub fn smbios(given: &Smbios, uuid: [u8; 16], serial: &str) -> Result<SmbiosConfig, HardwareError> {
    let text = |given: &Option<SmbiosString>| {
        let text = given.as_ref().map(SmbiosString::as_str);
        text.map(SmbiosText::try_from).transpose()
    };
    let Smbios {
        system,
        board,
        chassis,
        oem_strings,
    } = given;
    // A name may have 253 characters and a namespace 63; the table has room for fewer.
    let own_serial = SmbiosText::try_from(serial).ok();
    let strings: Result<Vec<_>, _> = oem_strings
        .iter()
        .map(|string| OemString::try_from(string.as_str()))
        .collect();
    Ok(SmbiosConfig {
        system: SystemIdentity {
            manufacturer: text(&system.manufacturer)?,
            product: text(&system.product)?,
            version: text(&system.version)?,
            serial: text(&system.serial)?.or(own_serial),
            uuid: Some(Uuid::from(system.uuid.map_or(uuid, |uuid| uuid.bytes()))),
            sku: text(&system.sku)?,
            family: text(&system.family)?,
        },
        board: BoardIdentity {
            manufacturer: text(&board.manufacturer)?,
            product: text(&board.product)?,
            version: text(&board.version)?,
            serial: text(&board.serial)?,
            asset: text(&board.asset)?,
            location: None,
        },
        chassis: ChassisIdentity {
            manufacturer: text(&chassis.manufacturer)?,
            version: text(&chassis.version)?,
            serial: text(&chassis.serial)?,
            asset: text(&chassis.asset)?,
            sku: text(&chassis.sku)?,
        },
        oem_strings: OemStrings::try_from(strings?)?,
    })
}
