//! The devices that are not on PCI: serial console, ACPI registers, keyboard controller's reset
//! line and the generic event device.

use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use podvisor_devices::bus::{Bus, BusDevice, BusError};
use podvisor_devices::console::{ConsoleLog, Terminal};
use podvisor_devices::interrupt::IrqLine;
use podvisor_devices::legacy::{
    AcpiPm, CpuSlots, Ged, GedEvent, I8042, MachineEvent, MachineEvents, Serial,
};
use thiserror::Error;

use crate::arch::irqchip::KvmLine;
use crate::arch::layout::{self, Range};
use crate::config::{Console, ConsoleOutput};

/// Why the platform devices could not be set up.
#[derive(Debug, Error)]
pub enum PlatformError {
    /// A port range is taken; a defect of the memory map.
    #[error("a platform device has no place")]
    Place(#[from] BusError),
    /// KVM or the host refuses an interrupt line.
    #[error("cannot wire interrupt line {gsi}")]
    Line {
        /// The line.
        gsi: u32,
        /// What the host said.
        source: io::Error,
    },
}

/// What the platform shall have.
pub(crate) struct PlatformConfig {
    pub(crate) console: Console,
    pub(crate) terminal: Terminal,
    pub(crate) output: Option<ConsoleOutput>,
    pub(crate) power_button: bool,
    /// Whether the guest can be told of events.
    pub(crate) has_events: bool,
    /// Slots of processors that come and go.
    pub(crate) cpus: Option<CpuSlots>,
}

/// A machine's platform devices.
pub(crate) struct Platform {
    terminal: Terminal,
    serial: Option<Arc<Serial>>,
    events: Option<Arc<Ged>>,
    has_button: bool,
    cpus: Option<Arc<CpuSlots>>,
}

impl Platform {
    /// Places the devices on `ports`; what the guest asks of the machine goes to `requests`.
    pub(crate) fn place(
        config: PlatformConfig,
        vm: &VmFd,
        ports: &Bus,
        requests: impl Fn(MachineEvent) + Send + Sync + 'static,
    ) -> Result<Self, PlatformError> {
        let requests: MachineEvents = Arc::new(requests);
        insert(
            ports,
            layout::PORT_ACPI,
            Arc::new(AcpiPm::new(Arc::clone(&requests))),
        )?;
        insert(ports, layout::PORT_I8042, Arc::new(I8042::new(requests)))?;
        let terminal = config.terminal;
        if let Some(output) = config.output {
            terminal.set_tap(output);
        }
        let serial = match config.console {
            Console::Off => None,
            Console::Log => Some(place_serial(ports, None, &terminal)?),
            Console::Terminal => {
                let line = line(vm, layout::GSI_SERIAL)?;
                Some(place_serial(ports, Some(line), &terminal)?)
            }
        };
        let events = if config.has_events {
            let device = Arc::new(Ged::new(line(vm, layout::GSI_EVENTS)?));
            insert(ports, layout::PORT_EVENTS, device.clone())?;
            Some(device)
        } else {
            None
        };
        let cpus = config.cpus.map(Arc::new);
        if let Some(cpus) = &cpus {
            insert(ports, layout::PORT_CPUS, cpus.clone())?;
        }
        Ok(Self {
            terminal,
            serial,
            events,
            has_button: config.power_button,
            cpus,
        })
    }

    /// The console.
    pub(crate) fn terminal(&self) -> &Terminal {
        &self.terminal
    }

    /// The console's last output.
    pub(crate) fn console(&self) -> &Arc<ConsoleLog> {
        self.terminal.log()
    }

    /// The machine's reset: the devices are as they came up, and the console's output is of
    /// another boot.
    pub(crate) fn power_on(&self) {
        if let Some(serial) = &self.serial {
            serial.reset();
        }
        self.terminal.begin_boot();
        if let Some(events) = &self.events {
            events.restore(0);
        }
        if let Some(cpus) = &self.cpus {
            cpus.power_on();
        }
    }

    /// The serial port, if there is one.
    pub(crate) fn serial(&self) -> Option<&Serial> {
        self.serial.as_deref()
    }

    /// The event register, if there is one.
    pub(crate) fn events(&self) -> Option<&Ged> {
        self.events.as_deref()
    }

    /// Slots of processors, in a machine in which they come and go.
    pub(crate) fn cpus(&self) -> Option<&CpuSlots> {
        self.cpus.as_deref()
    }

    /// Presses the power button. `None` when there is none.
    pub(crate) fn press_power_button(&self) -> Option<io::Result<()>> {
        let events = self.events.as_ref().filter(|_| self.has_button);
        events.map(|events| events.raise(GedEvent::PowerButton))
    }
}

fn insert(ports: &Bus, range: Range, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
    ports.insert(range.base, range.len, device)
}

fn line(vm: &VmFd, gsi: u32) -> Result<Arc<dyn IrqLine>, PlatformError> {
    let line = KvmLine::new(vm, gsi).map_err(|source| PlatformError::Line { gsi, source })?;
    Ok(Arc::new(line))
}

fn place_serial(
    ports: &Bus,
    line: Option<Arc<dyn IrqLine>>,
    terminal: &Terminal,
) -> Result<Arc<Serial>, BusError> {
    let serial = Serial::new(line, terminal.clone());
    insert(ports, layout::PORT_SERIAL, serial.clone())?;
    Ok(serial)
}
