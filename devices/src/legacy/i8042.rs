//! What is left of the keyboard controller: its reset line, which `reboot=k` pulls.
//!
//! The status always says "there is output, the input buffer is empty". Linux's driver gives
//! up at once on a controller that cannot be flushed, where one that never answers costs it
//! half a second; and before a reset Linux waits for the empty input buffer.

use super::{MachineEvent, MachineEvents};
use crate::bus::BusDevice;

/// Length in bytes of the port range, which begins at port 0x60.
pub const LEN: u64 = 5;

const STATUS: u64 = 4;
const OUTPUT_FULL: u8 = 1 << 0;
const COMMAND_RESET: u8 = 0xfe;

/// The controller at ports 0x60 to 0x64.
pub struct I8042 {
    events: MachineEvents,
}

impl I8042 {
    /// A controller that reports to `events`.
    #[must_use]
    pub fn new(events: MachineEvents) -> Self {
        Self { events }
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(if offset == STATUS { OUTPUT_FULL } else { 0xff });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == STATUS && data == [COMMAND_RESET] {
            (self.events)(MachineEvent::KeyboardReset);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn only_the_reset_command_is_an_event() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let controller = I8042::new(Arc::new(move |event| log.lock().unwrap().push(event)));
        controller.write(0, &[0xfe]);
        controller.write(STATUS, &[0xaa]);
        assert!(seen.lock().unwrap().is_empty());
        controller.write(STATUS, &[0xfe]);
        assert_eq!(*seen.lock().unwrap(), [MachineEvent::KeyboardReset]);
        let mut status = [0];
        controller.read(STATUS, &mut status);
        assert_eq!(status[0] & 0b11, 0b01);
    }
}
