//! The registers behind ACPI's processor devices: a byte for each processor that a machine can
//! have. The guest's ACPI code reads there whether the processor is there and what is asked of
//! it, and writes what becomes of that.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bus::BusDevice;

/// Length in bytes of the registers.
pub const LEN: u64 = 256;

/// Reads: the processor is there.
pub const PRESENT: u8 = 1 << 0;
/// Reads: it has come, and the guest has not been told. Writes: it has.
pub const INSERTED: u8 = 1 << 1;
/// Reads: the guest shall let go of it, and has not been told. Writes: it has.
pub const EJECT_ASKED: u8 = 1 << 2;
/// Writes: the guest has let go of it.
pub const EJECT: u8 = 1 << 3;
/// Writes: the guest does not let go of it.
pub const REFUSE: u8 = 1 << 4;

/// What became of a processor that the guest shall let go of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ejection {
    /// The guest has not answered yet.
    Asked,
    /// The guest keeps it.
    Refused,
}

/// A processor's slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuSlot {
    /// Whether it is there.
    pub present: bool,
    /// Whether the guest shall let go of it.
    pub ejection: Option<Ejection>,
    /// [`INSERTED`] and [`EJECT_ASKED`], until the guest has been told.
    untold: u8,
}

/// Told of each processor that the guest has let go of, by number, on the thread of the
/// processor that says so; it must not block.
pub type EjectSink = Box<dyn Fn(u8) + Send + Sync>;

/// All slots of a machine.
pub struct CpuSlots {
    slots: Mutex<Vec<CpuSlot>>,
    on_eject: EjectSink,
}

impl CpuSlots {
    /// Slots for `possible` processors, of which the first `present` are there.
    #[must_use]
    pub fn new(possible: u8, present: u8, on_eject: EjectSink) -> Self {
        let slot = |index| CpuSlot {
            present: index < present,
            ..CpuSlot::default()
        };
        Self {
            slots: Mutex::new((0..possible).map(slot).collect()),
            on_eject,
        }
    }

    /// The slots by the processors' numbers.
    #[must_use]
    pub fn slots(&self) -> Vec<CpuSlot> {
        self.lock().clone()
    }

    /// A processor comes. The guest has to be interrupted then.
    pub fn insert(&self, index: u8) {
        if let Some(slot) = self.lock().get_mut(usize::from(index)) {
            slot.present = true;
            slot.ejection = None;
            slot.untold = INSERTED;
        }
    }

    /// The guest shall let go of a processor. It has to be interrupted then.
    pub fn ask_ejection(&self, index: u8) {
        if let Some(slot) = self.lock().get_mut(usize::from(index))
            && slot.present
        {
            slot.ejection = Some(Ejection::Asked);
            slot.untold = EJECT_ASKED;
        }
    }

    /// The slots as at power-on with the processors that are there: a guest that begins has
    /// nothing to be told, it finds them.
    pub fn power_on(&self) {
        for slot in self.lock().iter_mut() {
            slot.ejection = None;
            slot.untold = 0;
        }
    }

    /// A byte for each slot, for a saved state.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let byte = |slot: &CpuSlot| {
            let refused = slot.ejection == Some(Ejection::Refused);
            let asked = slot.ejection == Some(Ejection::Asked);
            u8::from(slot.present)
                | slot.untold
                | if asked { EJECT } else { 0 }
                | if refused { REFUSE } else { 0 }
        };
        self.lock().iter().map(byte).collect()
    }

    /// Takes back what [`Self::save`] gave. `false` when it is of another number of slots.
    #[must_use]
    pub fn restore(&self, state: &[u8]) -> bool {
        let mut slots = self.lock();
        if slots.len() != state.len() {
            return false;
        }
        for (slot, &byte) in slots.iter_mut().zip(state) {
            slot.present = byte & PRESENT != 0;
            slot.untold = byte & (INSERTED | EJECT_ASKED);
            slot.ejection = match (byte & EJECT != 0, byte & REFUSE != 0) {
                (true, _) => Some(Ejection::Asked),
                (false, true) => Some(Ejection::Refused),
                (false, false) => None,
            };
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Vec<CpuSlot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CpuSlot {
    /// Takes what the guest writes. Whether it lets go of the processor.
    fn write(&mut self, value: u8) -> bool {
        self.untold &= !(value & (INSERTED | EJECT_ASKED));
        if value & REFUSE != 0 && self.ejection.is_some() {
            self.ejection = Some(Ejection::Refused);
        }
        // A guest may eject what it was not asked to, as an administrator can order there.
        let ejected = value & EJECT != 0 && self.present;
        if ejected {
            *self = Self::default();
        }
        ejected
    }
}

impl BusDevice for CpuSlots {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let slots = self.lock();
        let slot = usize::try_from(offset)
            .ok()
            .and_then(|index| slots.get(index));
        if let (Some(slot), [byte]) = (slot, data) {
            *byte = u8::from(slot.present) | slot.untold;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (&[value], Ok(index)) = (data, u8::try_from(offset)) else {
            return;
        };
        // Processor 0 is the one the guest began on, and stays.
        let value = if index == 0 { value & !EJECT } else { value };
        let mut slots = self.lock();
        let slot = slots.get_mut(usize::from(index));
        let ejected = slot.is_some_and(|slot| slot.write(value));
        drop(slots);
        if ejected {
            (self.on_eject)(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn slots(possible: u8, present: u8) -> (CpuSlots, Arc<Mutex<Vec<u8>>>) {
        let ejected = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&ejected);
        let sink = Box::new(move |index| log.lock().unwrap().push(index));
        (CpuSlots::new(possible, present, sink), ejected)
    }

    fn read(slots: &CpuSlots, index: u64) -> u8 {
        let mut byte = [0xff];
        slots.read(index, &mut byte);
        byte[0]
    }

    #[test]
    fn a_processor_comes_and_goes() {
        let (slots, ejected) = slots(3, 1);
        assert_eq!([0, 1, 2, 3].map(|index| read(&slots, index)), [1, 0, 0, 0]);
        slots.insert(1);
        assert_eq!(read(&slots, 1), PRESENT | INSERTED);
        slots.write(1, &[INSERTED]);
        assert_eq!(read(&slots, 1), PRESENT);
        slots.ask_ejection(1);
        assert_eq!(read(&slots, 1), PRESENT | EJECT_ASKED);
        assert_eq!(slots.slots()[1].ejection, Some(Ejection::Asked));
        slots.write(1, &[EJECT_ASKED]);
        assert!(ejected.lock().unwrap().is_empty());
        slots.write(1, &[EJECT]);
        assert_eq!(read(&slots, 1), 0);
        assert_eq!(slots.slots()[1], CpuSlot::default());
        assert_eq!(*ejected.lock().unwrap(), [1]);
        slots.write(1, &[EJECT]);
        assert_eq!(ejected.lock().unwrap().len(), 1, "gone only once");
    }

    #[test]
    fn a_refusal_is_kept_until_the_next_wish() {
        let (slots, _) = slots(2, 2);
        slots.write(1, &[REFUSE]);
        assert_eq!(slots.slots()[1].ejection, None, "nobody asked");
        slots.ask_ejection(1);
        slots.write(1, &[EJECT_ASKED]);
        slots.write(1, &[REFUSE]);
        assert_eq!(slots.slots()[1].ejection, Some(Ejection::Refused));
        slots.ask_ejection(1);
        assert_eq!(slots.slots()[1].ejection, Some(Ejection::Asked));
        slots.power_on();
        assert_eq!(read(&slots, 1), PRESENT);
        assert_eq!(slots.slots()[1].ejection, None);
    }

    #[test]
    fn the_first_processor_stays() {
        let (slots, ejected) = slots(2, 2);
        slots.write(0, &[EJECT]);
        assert!(slots.slots()[0].present);
        assert!(ejected.lock().unwrap().is_empty());
    }

    #[test]
    fn a_state_survives_and_one_of_another_shape_does_not() {
        let (before, _) = slots(4, 2);
        before.insert(2);
        before.ask_ejection(1);
        before.write(1, &[EJECT_ASKED]);
        before.ask_ejection(0);
        before.write(0, &[REFUSE]);
        let (after, _) = slots(4, 1);
        assert!(after.restore(&before.save()));
        assert_eq!(after.slots(), before.slots());
        let (other, _) = slots(3, 1);
        assert!(!other.restore(&before.save()));
    }

    proptest! {
        #[test]
        fn no_guest_loses_the_first_processor_or_gets_one(
            accesses in proptest::collection::vec((0_u64..300, proptest::collection::vec(any::<u8>(), 0..5)), 0..50),
        ) {
            let (slots, ejected) = slots(4, 3);
            for (offset, data) in accesses {
                slots.write(offset, &data);
                slots.read(offset, &mut data.clone());
            }
            let present: Vec<_> = slots.slots().iter().map(|slot| slot.present).collect();
            let gone = ejected.lock().unwrap();
            prop_assert!(present[0] && !present[3]);
            prop_assert_eq!(2 - gone.len(), present[1..3].iter().filter(|&&p| p).count());
        }
    }
}
