//! Processors that a running machine gets and gives back.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use podvisor_devices::legacy::{CpuSlot, CpuSlots, Ejection, GedEvent};
use thiserror::Error;

use crate::config::Vcpus;
use crate::machine::Machine;
use crate::state::StateError;
use crate::vcpu::{Control, MakeError, PinError, VcpuCell, VcpuContext, VcpuMaker, VcpuThreads};

/// Why a machine's processors are not changed.
#[derive(Debug, Error)]
pub enum VcpuPlugError {
    /// It was built without room for more ([`crate::Processors::new`]).
    #[error("the VM's number of vCPUs cannot change")]
    Fixed,
    /// More than it has room for.
    #[error("{} vCPUs: the VM has room for {}", wanted.get(), possible.get())]
    TooMany {
        /// What was asked for.
        wanted: Vcpus,
        /// What there is room for.
        possible: Vcpus,
    },
    /// The machine has ended.
    #[error("the VM has ended")]
    Ended,
    /// A processor could not be made.
    #[error("cannot make vCPU {index}")]
    Make {
        /// Which one.
        index: u8,
        /// What is wrong.
        source: MakeError,
    },
    /// A processor's thread could not be started.
    #[error("cannot start a thread for vCPU {index}")]
    Thread {
        /// Which one.
        index: u8,
        /// What the host said.
        source: io::Error,
    },
    /// A processor could not be bound to the host's one that is meant for it.
    #[error("cannot pin the vCPU")]
    Pin(#[from] PinError),
    /// The guest cannot be told.
    #[error("cannot interrupt the guest")]
    Interrupt(#[source] io::Error),
}

/// How a machine's processors stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuState {
    /// How many there are. The guest need not use them: Linux waits for its user space to switch
    /// a new one on.
    pub present: u8,
    /// How many of them the guest was asked to let go of and has not yet.
    pub leaving: u8,
    /// How many of them the guest was asked to let go of and keeps.
    pub kept: u8,
}

/// What it takes to make and start a processor.
pub(crate) struct VcpuPlug {
    pub(crate) maker: VcpuMaker,
    pub(crate) context: Arc<VcpuContext>,
    /// One change at a time.
    pub(crate) changing: Mutex<()>,
}

/// Slots for processors that come and go. What the guest lets go of, `threads` stops.
pub(crate) fn slots(possible: Vcpus, booted: Vcpus, threads: &Arc<VcpuThreads>) -> CpuSlots {
    // The devices are held by the threads.
    let threads = Arc::downgrade(threads);
    let stop = move |index: u8| {
        if let Some(threads) = threads.upgrade() {
            threads.retire(usize::from(index));
        }
    };
    CpuSlots::new(possible.get(), booted.get(), Box::new(stop))
}

/// What a wish for a number of processors means.
#[derive(Debug, Default, PartialEq, Eq)]
struct Change {
    coming: Vec<u8>,
    leaving: Vec<u8>,
}

impl Change {
    /// The lowest free slots are taken, and the highest taken ones freed.
    fn of(slots: &[CpuSlot], wanted: Vcpus) -> Self {
        let numbers = |present: bool| {
            let numbered = (0_u8..).zip(slots);
            let chosen = numbered.filter(move |(_, slot)| slot.present == present);
            chosen.map(|(number, _)| number)
        };
        let present: Vec<u8> = numbers(true).collect();
        let wanted = usize::from(wanted.get());
        let more = wanted.saturating_sub(present.len());
        Self {
            coming: numbers(false).take(more).collect(),
            leaving: present.into_iter().skip(wanted).collect(),
        }
    }
}

impl Machine {
    /// Asks for `wanted` processors in all: makes those that are missing, or asks the guest to
    /// let go of those that are too many.
    pub(crate) fn set_vcpus(&self, wanted: Vcpus) -> Result<(), VcpuPlugError> {
        let slots = self.platform.cpus().ok_or(VcpuPlugError::Fixed)?;
        let changing = self.vcpus.changing.lock();
        let _changing = changing.unwrap_or_else(PoisonError::into_inner);
        let present = slots.slots();
        let possible = self.vcpus.maker.topology.possible();
        if wanted > possible {
            return Err(VcpuPlugError::TooMany { wanted, possible });
        }
        let change = Change::of(&present, wanted);
        for &index in &change.coming {
            self.admit(index)?;
            slots.insert(index);
        }
        for &index in &change.leaving {
            slots.ask_ejection(index);
        }
        let events = self.platform.events().ok_or(VcpuPlugError::Fixed)?;
        events
            .raise(GedEvent::Processors)
            .map_err(VcpuPlugError::Interrupt)
    }

    /// Makes the processor `index`, unless it is there from a time before, and starts its thread.
    pub(crate) fn admit(&self, index: u8) -> Result<(), VcpuPlugError> {
        let VcpuPlug { maker, context, .. } = &self.vcpus;
        let number = usize::from(index);
        if self.threads.cell(number).is_none() {
            let made = maker.make_late(index);
            let cell = made.map_err(|source| VcpuPlugError::Make { index, source })?;
            self.threads.add(number, cell);
        }
        self.threads.wait_retired(number);
        if !self.control.admit() {
            return Err(VcpuPlugError::Ended);
        }
        if let Err(source) = self.threads.spawn(context, number) {
            dismiss(&self.control);
            return Err(VcpuPlugError::Thread { index, source });
        }
        Ok(self.threads.pin_one(number)?)
    }

    /// The processors that there are, by number.
    pub(crate) fn present_cells(&self) -> Vec<&VcpuCell> {
        match self.platform.cpus() {
            None => self.threads.cells(),
            Some(slots) => {
                let slots = slots.slots().into_iter().enumerate();
                let present = slots.filter(|(_, slot)| slot.present);
                let cells = present.map(|(number, _)| self.threads.cell(number));
                cells.flatten().collect()
            }
        }
    }

    /// Makes this new machine have the processors of a saved one with these slots.
    pub(crate) fn match_vcpus(&self, saved: Option<&[u8]>) -> Result<(), StateError> {
        let (slots, saved) = match (self.platform.cpus(), saved) {
            (Some(slots), Some(saved)) => (slots, saved),
            (None, None) => return Ok(()),
            _ => return Err(StateError::Mismatch("processors")),
        };
        let before = slots.slots();
        if !slots.restore(saved) {
            return Err(StateError::Mismatch("processors"));
        }
        for (index, (before, now)) in (0_u8..).zip(before.into_iter().zip(slots.slots())) {
            match (before.present, now.present) {
                (false, true) => self.admit(index)?,
                (true, false) => self.threads.retire(usize::from(index)),
                _ => {}
            }
        }
        Ok(())
    }

    /// How the processors stand.
    pub(crate) fn vcpu_state(&self) -> VcpuState {
        let Some(slots) = self.platform.cpus() else {
            let present = u8::try_from(self.threads.cells().len()).unwrap_or(u8::MAX);
            return VcpuState {
                present,
                ..VcpuState::default()
            };
        };
        let mut state = VcpuState::default();
        for slot in slots.slots().iter().filter(|slot| slot.present) {
            state.present += 1;
            match slot.ejection {
                Some(Ejection::Asked) => state.leaving += 1,
                Some(Ejection::Refused) => state.kept += 1,
                None => {}
            }
        }
        state
    }
}

/// Takes back the place of a thread that did not come to be. The first processor's is still
/// there, so that this is not the machine's end.
fn dismiss(control: &Control) {
    control.leave(|reason| reason);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn change(present: &[bool], wanted: u32) -> Change {
        let slots = CpuSlots::new(u8::try_from(present.len()).unwrap(), 0, Box::new(|_| {}));
        for (number, _) in (0..).zip(present).filter(|(_, present)| **present) {
            slots.insert(number);
        }
        Change::of(&slots.slots(), Vcpus::try_from(wanted).unwrap())
    }

    #[test]
    fn the_lowest_come_and_the_highest_leave() {
        let present = [true, false, true, false, false];
        assert_eq!(change(&present, 2), Change::default());
        assert_eq!(change(&present, 4).coming, [1, 3]);
        assert_eq!(change(&present, 1).leaving, [2]);
    }

    proptest! {
        #[test]
        fn the_first_never_leaves_and_the_number_comes_out(
            others in proptest::collection::vec(any::<bool>(), 0..20), wanted in 1_u32..=20,
        ) {
            let present: Vec<bool> = std::iter::once(true).chain(others).collect();
            let count = present.iter().filter(|&&present| present).count();
            let wanted = wanted.min(u32::try_from(present.len()).unwrap());
            let change = change(&present, wanted);
            prop_assert!(!change.leaving.contains(&0));
            prop_assert!(change.coming.is_empty() || change.leaving.is_empty());
            let after = count + change.coming.len() - change.leaving.len();
            prop_assert_eq!(after, wanted as usize);
        }
    }
}
