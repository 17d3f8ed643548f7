//! The register behind ACPI's generic event device (ACPI 6.5, 5.6.9): one word of event bits
//! and an interrupt. The guest's handler reads the word, which clears it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::bus::BusDevice;
use crate::interrupt::IrqLine;

/// Length in bytes of the register.
pub const LEN: u64 = 4;

/// Something the guest is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum GedEvent {
    /// The power button was pressed.
    PowerButton = 1 << 0,
    /// The machine goes on from a copy of its state: what was unique is so no more.
    Generation = 1 << 1,
    /// A processor comes, or shall go.
    Processors = 1 << 2,
}

/// The event register.
pub struct Ged {
    events: AtomicU32,
    line: Arc<dyn IrqLine>,
}

impl Ged {
    /// A register without events that interrupts through `line`.
    #[must_use]
    pub fn new(line: Arc<dyn IrqLine>) -> Self {
        Self {
            events: AtomicU32::new(0),
            line,
        }
    }

    /// Tells the guest of `event`.
    ///
    /// # Errors
    /// When the interrupt line cannot be raised.
    pub fn raise(&self, event: GedEvent) -> io::Result<()> {
        self.events.fetch_or(event as u32, Ordering::AcqRel);
        self.line.trigger()
    }

    /// The events the guest has not read yet, for a saved state.
    #[must_use]
    pub fn pending(&self) -> u32 {
        self.events.load(Ordering::Acquire)
    }

    /// Takes back what [`Self::pending`] gave; the interrupt controller has its own state.
    pub fn restore(&self, events: u32) {
        self.events.store(events, Ordering::Release);
    }
}

impl BusDevice for Ged {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Ok(word)) = (offset, <&mut [u8; 4]>::try_from(data)) {
            *word = self.events.swap(0, Ordering::AcqRel).to_le_bytes();
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Line(AtomicUsize);

    impl IrqLine for Line {
        fn trigger(&self) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    #[test]
    fn an_event_interrupts_and_is_read_once() {
        let line = Arc::new(Line::default());
        let ged = Ged::new(line.clone());
        ged.raise(GedEvent::PowerButton).unwrap();
        assert_eq!(line.0.load(Ordering::SeqCst), 1);
        let mut part = [0xff; 2];
        ged.read(0, &mut part);
        assert_eq!(part, [0, 0], "a partial read takes nothing away");
        let mut word = [0; 4];
        ged.read(0, &mut word);
        assert_eq!(u32::from_le_bytes(word), GedEvent::PowerButton as u32);
        ged.read(0, &mut word);
        assert_eq!(word, [0; 4]);
    }

    #[test]
    fn unread_events_survive_a_restore() {
        let ged = Ged::new(Arc::new(Line::default()));
        ged.raise(GedEvent::PowerButton).unwrap();
        let other = Ged::new(Arc::new(Line::default()));
        other.restore(ged.pending());
        assert_eq!(other.pending(), 1);
    }
}
