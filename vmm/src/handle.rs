//! A machine as its owner sees it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use podvisor_devices::console::Terminal;
use podvisor_devices::legacy::Serial;
use prost::Message as _;
use thiserror::Error;

use crate::config::{DeviceSlot, MemorySize, Vcpus, VmConfig};
use crate::event::{EndReason, EventSink, RestartCause};
use crate::generation::GenerationError;
use crate::machine::{Machine, StartError};
use crate::memory::GuestRam;
use crate::pci::PciError;
use crate::plugged_memory::{MemoryPlugError, MemoryState, PluggedMemory};
use crate::plugged_vcpus::{VcpuPlugError, VcpuState};
use crate::state::{MachineState, StateError};
use crate::timeline::Phase;
use crate::vcpu::{ExitCounts, PinError, StatsError};

/// Starts machines.
pub struct Vm;

/// A running machine. Clones are handles of the same one; the machine ends, and its threads are
/// joined, when the last is dropped.
#[derive(Clone)]
pub struct VmHandle {
    machine: Arc<Machine>,
}

/// Why an order was not carried out.
#[derive(Debug, Error)]
pub enum OrderError {
    /// The machine has ended.
    #[error("the VM has ended")]
    Ended,
    /// The machine was built to end at a reset.
    #[error("the VM ends at a reset")]
    EndsAtReset,
    /// The machine was built without a power button.
    #[error("the VM has no power button")]
    NoPowerButton,
    /// The interrupt of the power button cannot be raised.
    #[error("cannot interrupt the guest")]
    Interrupt(#[source] io::Error),
}

impl Vm {
    /// Builds a machine and lets it run. `events` is called from the machine's threads.
    ///
    /// # Errors
    /// [`StartError`]; nothing of the machine is left then, and no event is sent.
    pub fn start(config: VmConfig, events: EventSink) -> Result<VmHandle, StartError> {
        let handle = VmHandle {
            machine: Arc::new(Machine::boot(config, events)?),
        };
        handle.machine.control.order_run();
        Ok(handle)
    }

    /// Builds a machine from what [`VmHandle::save`] and [`VmHandle::guest_ram`] of another one
    /// gave, with a `config` of the same shape. It is paused; nothing else may run on that
    /// memory from now on. A guest whose `generation_id` is another one is told so.
    ///
    /// # Errors
    /// [`RestoreError`]; nothing of the new machine is left then.
    pub fn restore(
        config: VmConfig,
        ram: GuestRam,
        state: &[u8],
        events: EventSink,
    ) -> Result<VmHandle, RestoreError> {
        let state = MachineState::parse(state)?;
        let generation = config.generation_id;
        let handle = VmHandle {
            machine: Arc::new(Machine::around(ram, config, events)?),
        };
        state.restore(&handle.machine)?;
        if let Some(id) = generation {
            handle.machine.renew_generation(id)?;
        }
        Ok(handle)
    }
}

/// Why a saved machine could not be brought back.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The machine could not be built.
    #[error("cannot build the VM")]
    Start(#[from] StartError),
    /// The state does not fit.
    #[error("cannot restore the VM")]
    State(#[from] StateError),
    /// The guest cannot be told that it goes on from a copy.
    #[error("cannot renew the generation ID")]
    Generation(#[from] GenerationError),
}

impl VmHandle {
    /// Stops all processors, then all devices: nothing changes guest memory after.
    ///
    /// # Errors
    /// [`OrderError::Ended`] when the machine has ended.
    pub fn pause(&self) -> Result<(), OrderError> {
        let machine = &self.machine;
        let _pausing = machine.pausing();
        if !machine.control.order_park() {
            return Err(OrderError::Ended);
        }
        machine.threads.kick();
        if !machine.control.wait_parked() {
            return Err(OrderError::Ended);
        }
        machine.pci.pause();
        Ok(())
    }

    /// Lets a paused machine go on; one that runs does so anyway.
    ///
    /// # Errors
    /// [`OrderError::Ended`] when the machine has ended.
    pub fn resume(&self) -> Result<(), OrderError> {
        let _pausing = self.machine.pausing();
        if !self.machine.control.is_ordered_to_park()? {
            return Ok(());
        }
        for cell in self.machine.threads.cells() {
            cell.excuse_pause();
        }
        self.machine.pci.resume();
        if self.machine.control.order_run() {
            Ok(())
        } else {
            Err(OrderError::Ended)
        }
    }

    /// Puts a device on the PCI bus of the running machine; the guest finds it when it scans the
    /// bus. Its failure does not end the machine.
    ///
    /// # Errors
    /// [`PciError`]; nothing of the device is left then.
    pub fn plug(&self, slot: DeviceSlot) -> Result<(), PciError> {
        self.machine.pci.plug(slot)
    }

    /// Takes a plugged device away, ready or not: the guest should have let go of it. Waits for
    /// what the device is doing.
    ///
    /// # Errors
    /// [`PciError::Missing`].
    pub fn unplug(&self, name: &str) -> Result<(), PciError> {
        self.machine.pci.unplug(name)
    }

    /// Presses the power button: a guest that listens shuts itself down. Its next power-off ends the
    /// machine, whatever [`VmConfig::on_poweroff`] says.
    ///
    /// # Errors
    /// [`OrderError::NoPowerButton`] without one, [`OrderError::Interrupt`] when the guest
    /// cannot be told.
    pub fn power_button(&self) -> Result<(), OrderError> {
        self.machine.control.end_when_off();
        let pressed = self.machine.platform.press_power_button();
        pressed
            .ok_or(OrderError::NoPowerButton)?
            .map_err(OrderError::Interrupt)
    }

    /// Lets every processor run on its own host CPUs only, by `host_cpus`; those beyond the list, or
    /// without any, run wherever this process may.
    ///
    /// # Errors
    /// [`PinError`]; the processors before the one it names are bound.
    pub fn pin_vcpus(&self, host_cpus: &[Vec<usize>]) -> Result<(), PinError> {
        self.machine.threads.pin(host_cpus)
    }

    /// Asks for `wanted` processors in all. New ones are there when this returns, for the guest to
    /// switch on; those that are too many go when the guest lets go of them: [`Self::vcpus`] tells.
    ///
    /// # Errors
    /// [`VcpuPlugError`] without room for more ([`crate::Processors::new`]), or when the host
    /// lacks something; processors before the one it names have come.
    pub fn set_vcpus(&self, wanted: Vcpus) -> Result<(), VcpuPlugError> {
        self.machine.set_vcpus(wanted)
    }

    /// How the processors stand.
    #[must_use]
    pub fn vcpus(&self) -> VcpuState {
        self.machine.vcpu_state()
    }

    /// Asks the guest to have `wanted` bytes of memory in all; parts of 2 MiB are left out. It
    /// follows as far and as fast as it can: [`Self::memory`] tells.
    ///
    /// # Errors
    /// [`MemoryPlugError`] without [`VmConfig::hot_memory`], or when `wanted` is out of its
    /// bounds.
    pub fn set_memory(&self, wanted: MemorySize) -> Result<(), MemoryPlugError> {
        let memory = self.machine.memory.as_ref();
        memory.ok_or(MemoryPlugError::Fixed)?.request(wanted)
    }

    /// How the guest's memory stands; `None` in a machine whose memory cannot change.
    #[must_use]
    pub fn memory(&self) -> Option<MemoryState> {
        self.machine.memory.as_ref().map(PluggedMemory::state)
    }

    /// The console, to read and to type.
    #[must_use]
    pub fn terminal(&self) -> &Terminal {
        self.machine.platform.terminal()
    }

    /// Sends a break on the serial port, which Linux takes as the system request key. `false`
    /// without a serial port.
    #[must_use]
    pub fn console_break(&self) -> bool {
        let serial = self.machine.platform.serial();
        serial.map(Serial::send_break).is_some()
    }

    /// Resets the machine without asking the guest, as a reset button does. It is under way when
    /// this returns; [`crate::VmEvent::Restarted`] tells that it is done. A paused machine stays
    /// paused.
    ///
    /// # Errors
    /// [`OrderError::EndsAtReset`] without [`crate::ResetPolicy::Restart`],
    /// [`OrderError::Ended`] when the machine has ended.
    pub fn restart(&self) -> Result<(), OrderError> {
        let machine = &self.machine;
        if !machine.restarts_in_place() {
            return Err(OrderError::EndsAtReset);
        }
        if !machine.control.order_reset(RestartCause::Owner) {
            return Err(OrderError::Ended);
        }
        machine.threads.kick();
        Ok(())
    }

    /// How often the machine was reset in place.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.machine.restarts.load(Ordering::Relaxed)
    }

    /// Ends the machine without asking the guest.
    pub fn stop(&self) {
        self.machine.control.order_end(EndReason::Killed);
        self.machine.threads.kick();
    }

    /// The state of the paused machine, all but its memory: a versioned message.
    ///
    /// # Errors
    /// [`StateError`] when the machine is not paused or a part cannot be read.
    pub fn save(&self) -> Result<Vec<u8>, StateError> {
        Ok(MachineState::save(&self.machine)?.encode_to_vec())
    }

    /// The guest's memory.
    #[must_use]
    pub fn guest_ram(&self) -> &GuestRam {
        &self.machine.ram
    }

    /// Waits until no processor runs any more. Do not call it from an event.
    #[must_use]
    pub fn wait(&self) -> EndReason {
        self.machine.control.wait_ended()
    }

    /// The console's last output, at most 64 KiB.
    #[must_use]
    pub fn console_tail(&self) -> Vec<u8> {
        self.machine.platform.console().tail()
    }

    /// When the steps of the start were done.
    #[must_use]
    pub fn timeline(&self) -> Vec<Phase> {
        self.machine.timeline.phases()
    }

    /// How often processors have left guest mode.
    ///
    /// # Errors
    /// [`StatsError`] when KVM does not say.
    pub fn exits(&self) -> Result<ExitCounts, StatsError> {
        let mut counts = ExitCounts::default();
        for cell in self.machine.threads.cells() {
            let (total, user) = cell.exits()?;
            counts.total += total;
            counts.user += user;
        }
        Ok(counts)
    }
}
