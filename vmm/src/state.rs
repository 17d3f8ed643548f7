//! A paused machine's state as a versioned message, everything but its memory.

use prost::Message as _;
use thiserror::Error;

use podvisor_devices::legacy::CpuSlots;
use podvisor_devices::virtio::pci::StateError as DeviceStateError;

use crate::arch::vcpu_state::{VcpuState, VcpuStateError};
use crate::arch::vm_state::VmState;
use crate::arch::{cpuid, layout};
use crate::machine::Machine;
use crate::plugged_vcpus::VcpuPlugError;

/// Version of [`MachineState`].
pub const VERSION: u32 = 1;

/// Why a state cannot be saved or restored.
#[derive(Debug, Error)]
pub enum StateError {
    /// Its processors run; it has to be paused first.
    #[error("the VM is not paused")]
    Running,
    /// The bytes are no message.
    #[error("the state cannot be decoded")]
    Decode(#[from] prost::DecodeError),
    /// It was saved by a release with another idea of a machine.
    #[error("the state has {what} version {found}, not {expected}")]
    Version {
        /// Which version.
        what: &'static str,
        /// The state's.
        found: u32,
        /// Ours.
        expected: u32,
    },
    /// It belongs to a machine of another shape.
    #[error("the state is of a machine with other {0}")]
    Mismatch(&'static str),
    /// A processor or what they share.
    #[error("the processors' state")]
    Vcpu(#[from] VcpuStateError),
    /// A processor that was plugged cannot be made again.
    #[error("cannot plug the processors")]
    Plug(#[from] VcpuPlugError),
    /// What KVM counts as state is not to be had.
    #[error("KVM does not list its MSRs")]
    Msrs(#[source] kvm_ioctls::Error),
    /// A PCI device.
    #[error("the state of device {device}")]
    Device {
        /// Name of its slot.
        device: String,
        /// What is wrong.
        source: DeviceStateError,
    },
    /// The serial port.
    #[error("the state of the serial port")]
    Serial(#[source] std::io::Error),
}

/// One PCI device.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DeviceState {
    /// Name of its slot.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its own message.
    #[prost(bytes = "vec", tag = "2")]
    pub state: Vec<u8>,
}

/// A machine.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MachineState {
    /// [`VERSION`].
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// [`layout::VERSION`].
    #[prost(uint32, tag = "2")]
    pub memory_map: u32,
    /// [`cpuid::TEMPLATE_VERSION`].
    #[prost(uint32, tag = "3")]
    pub cpuid_template: u32,
    /// The processors that there are, by number.
    #[prost(message, repeated, tag = "4")]
    pub vcpus: Vec<VcpuState>,
    /// What they share.
    #[prost(message, required, tag = "5")]
    pub shared: VmState,
    /// The PCI devices in slot order.
    #[prost(message, repeated, tag = "6")]
    pub devices: Vec<DeviceState>,
    /// The serial port, if there is one.
    #[prost(bytes = "vec", optional, tag = "7")]
    pub serial: Option<Vec<u8>>,
    /// Events the guest has not read, if there is an event device.
    #[prost(uint32, optional, tag = "8")]
    pub events: Option<u32>,
    /// Slots of processors, in a machine in which they come and go.
    #[prost(bytes = "vec", optional, tag = "9")]
    pub cpu_slots: Option<Vec<u8>>,
    /// Model and topology of the processors.
    #[prost(string, tag = "10")]
    pub processors: String,
}

impl MachineState {
    /// Reads a state and makes sure that this release knows its versions.
    ///
    /// # Errors
    /// [`StateError::Decode`] or [`StateError::Version`].
    pub fn parse(bytes: &[u8]) -> Result<Self, StateError> {
        let state = Self::decode(bytes)?;
        let versions = [
            ("state", state.version, VERSION),
            ("memory map", state.memory_map, layout::VERSION),
            (
                "CPUID template",
                state.cpuid_template,
                cpuid::TEMPLATE_VERSION,
            ),
        ];
        match versions
            .into_iter()
            .find(|(_, found, expected)| found != expected)
        {
            Some((what, found, expected)) => Err(StateError::Version {
                what,
                found,
                expected,
            }),
            None => Ok(state),
        }
    }

    /// Reads the state of a paused machine.
    pub(crate) fn save(machine: &Machine) -> Result<Self, StateError> {
        if !machine.control.is_parked() {
            return Err(StateError::Running);
        }
        let msrs = crate::arch::msrs::saved_indices(&machine.kvm).map_err(StateError::Msrs)?;
        let cells = machine.present_cells();
        let vcpus = cells
            .iter()
            .map(|cell| VcpuState::save(&cell.lock(), &msrs));
        Ok(Self {
            version: VERSION,
            memory_map: layout::VERSION,
            cpuid_template: cpuid::TEMPLATE_VERSION,
            vcpus: vcpus.collect::<Result<_, _>>()?,
            shared: VmState::save(&machine.vm)?,
            devices: machine.pci.save()?,
            serial: machine.platform.serial().map(|serial| serial.save()),
            events: machine.platform.events().map(|events| events.pending()),
            cpu_slots: machine.platform.cpus().map(CpuSlots::save),
            processors: machine.vcpus.maker.shape(),
        })
    }

    /// Puts the state into a new machine of the same shape whose processors are parked.
    pub(crate) fn restore(&self, machine: &Machine) -> Result<(), StateError> {
        if self.processors != machine.vcpus.maker.shape() {
            return Err(StateError::Mismatch("processors"));
        }
        machine.match_vcpus(self.cpu_slots.as_deref())?;
        let cells = machine.present_cells();
        if cells.len() != self.vcpus.len() {
            return Err(StateError::Mismatch("processors"));
        }
        self.shared.restore(&machine.vm)?;
        for (cell, vcpu) in cells.iter().zip(&self.vcpus) {
            vcpu.restore(&cell.lock())?;
        }
        machine.pci.restore(&self.devices)?;
        match (machine.platform.serial(), &self.serial) {
            (Some(serial), Some(state)) => serial.restore(state).map_err(StateError::Serial)?,
            (None, None) => {}
            _ => return Err(StateError::Mismatch("consoles")),
        }
        match (machine.platform.events(), self.events) {
            (Some(events), Some(pending)) => events.restore(pending),
            (None, None) => {}
            _ => return Err(StateError::Mismatch("buttons")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state() -> MachineState {
        MachineState {
            version: VERSION,
            memory_map: layout::VERSION,
            cpuid_template: cpuid::TEMPLATE_VERSION,
            ..MachineState::default()
        }
    }

    #[test]
    fn a_state_of_another_version_is_refused_by_name() {
        let later = MachineState {
            memory_map: layout::VERSION + 1,
            ..state()
        };
        let error = MachineState::parse(&later.encode_to_vec()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the state has memory map version 2, not 1"
        );
        MachineState::parse(&state().encode_to_vec()).unwrap();
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_no_state_and_no_panic(bytes: Vec<u8>) {
            prop_assert!(MachineState::parse(&bytes).is_err());
        }
    }
}
