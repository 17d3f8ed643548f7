//! Sleep and reset registers of hardware-reduced ACPI (ACPI 6.5, 4.8.3.7 and 4.8.3.6).

use super::{MachineEvent, MachineEvents};
use crate::bus::BusDevice;

/// Length in bytes of the register block.
pub const LEN: u64 = 3;
/// Offset of the sleep control register, for the FADT.
pub const SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register, for the FADT.
pub const SLEEP_STATUS: u64 = 1;
/// Offset of the reset register, for the FADT.
pub const RESET: u64 = 2;
/// What resets the machine when it is written to the reset register, for the FADT.
pub const RESET_VALUE: u8 = 1;
/// The sleep type that means S5, for the package `\_S5`.
pub const SLEEP_TYPE_S5: u8 = 5;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;

/// The registers: each one byte wide.
pub struct AcpiPm {
    events: MachineEvents,
}

impl AcpiPm {
    /// Registers that report to `events`.
    #[must_use]
    pub fn new(events: MachineEvents) -> Self {
        Self { events }
    }
}

impl BusDevice for AcpiPm {
    /// All read zero: the machine never sleeps, so it never wakes.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        let sleep_type = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
        match offset {
            SLEEP_CONTROL if value & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_S5 => {
                (self.events)(MachineEvent::PowerOff);
            }
            RESET if value == RESET_VALUE => (self.events)(MachineEvent::AcpiReset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn only_s5_and_the_reset_value_are_events() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let pm = AcpiPm::new(Arc::new(move |event| log.lock().unwrap().push(event)));
        pm.write(SLEEP_STATUS, &[0x80]);
        pm.write(SLEEP_CONTROL, &[SLEEP_TYPE_S5 << 2]);
        pm.write(SLEEP_CONTROL, &[1 << 2 | SLEEP_ENABLE]);
        pm.write(RESET, &[0]);
        pm.write(SLEEP_CONTROL, &[0x34, 0x34]);
        assert!(seen.lock().unwrap().is_empty());
        pm.write(SLEEP_CONTROL, &[SLEEP_TYPE_S5 << 2 | SLEEP_ENABLE]);
        pm.write(RESET, &[RESET_VALUE]);
        assert_eq!(
            *seen.lock().unwrap(),
            [MachineEvent::PowerOff, MachineEvent::AcpiReset]
        );
    }
}
