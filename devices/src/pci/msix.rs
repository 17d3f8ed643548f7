//! MSI-X: the vector table, its masks and the pending bits (PCI 3.0, 6.8.2).

use std::sync::Arc;

use crate::interrupt::{MsiMessage, MsiSink};

/// The capability's number.
pub const CAPABILITY_ID: u8 = 0x11;
/// Bytes of one table entry.
pub const ENTRY_LEN: u64 = 16;
/// Most vectors a function may have (the size field's 11 bits).
pub const MAX_VECTORS: u16 = 2048;

const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
const CONTROL_ENABLE: u16 = 1 << 15;
const VECTOR_MASKED: u32 = 1;

#[derive(Clone, Copy)]
struct Entry {
    /// Address low, address high, data, vector control, as the guest sees them.
    words: [u32; 4],
    pending: bool,
}

impl Entry {
    /// Vectors are masked until a driver programs them.
    const RESET: Self = Self {
        words: [0, 0, 0, VECTOR_MASKED],
        pending: false,
    };

    fn is_masked(&self) -> bool {
        let [.., control] = self.words;
        control & VECTOR_MASKED != 0
    }

    fn message(&self) -> MsiMessage {
        let [low, high, data, _] = self.words;
        MsiMessage {
            address: u64::from(high) << 32 | u64::from(low),
            data,
        }
    }
}

/// The vectors of one function.
pub struct Msix {
    entries: Vec<Entry>,
    control: u16,
    may_send: bool,
    sink: Arc<dyn MsiSink>,
    refused: u64,
}

impl Msix {
    /// `vectors` masked vectors (at most [`MAX_VECTORS`]), switched off.
    #[must_use]
    pub fn new(vectors: u16, sink: Arc<dyn MsiSink>) -> Self {
        let count = usize::from(vectors.min(MAX_VECTORS));
        Self {
            entries: vec![Entry::RESET; count],
            control: 0,
            may_send: false,
            sink,
            refused: 0,
        }
    }

    /// The body of the capability, with the table and the pending bits at these offsets of
    /// BAR 0 (multiples of 8), and the mask of its writable bits.
    #[must_use]
    pub fn capability(&self, table: u32, pending: u32) -> ([u8; 10], [u8; 2]) {
        let last = u16::try_from(self.entries.len().saturating_sub(1)).unwrap_or(MAX_VECTORS - 1);
        let mut body = [0; 10];
        let fields = last.to_le_bytes().into_iter().chain(table.to_le_bytes());
        for (to, from) in body.iter_mut().zip(fields.chain(pending.to_le_bytes())) {
            *to = from;
        }
        (body, (CONTROL_FUNCTION_MASK | CONTROL_ENABLE).to_le_bytes())
    }

    /// Takes the capability's message control register and whether the function may send at
    /// all: one that is no bus master keeps its interrupts pending.
    pub fn set_control(&mut self, control: u16, may_send: bool) {
        self.control = control & (CONTROL_FUNCTION_MASK | CONTROL_ENABLE);
        self.may_send = may_send;
        self.deliver_pending();
    }

    /// Whether `vector` exists.
    #[must_use]
    pub fn has_vector(&self, vector: u16) -> bool {
        usize::from(vector) < self.entries.len()
    }

    /// Sends the interrupt of `vector`, or keeps it pending while it is masked. Nothing
    /// happens while MSI-X is off: there is no other way for an interrupt of ours.
    pub fn signal(&mut self, vector: u16) {
        if self.control & CONTROL_ENABLE == 0 {
            return;
        }
        let blocked = self.is_blocked();
        let Some(entry) = self.entries.get_mut(usize::from(vector)) else {
            return;
        };
        if blocked || entry.is_masked() {
            entry.pending = true;
        } else if self.sink.signal(entry.message()).is_err() {
            self.refused += 1;
        }
    }

    /// The message of `vector` if it would be sent now.
    #[must_use]
    pub fn message(&self, vector: u16) -> Option<MsiMessage> {
        if self.control & CONTROL_ENABLE == 0 || self.is_blocked() {
            return None;
        }
        let entry = self.entries.get(usize::from(vector))?;
        (!entry.is_masked()).then(|| entry.message())
    }

    /// Forgets what is pending.
    pub fn clear_pending(&mut self) {
        for entry in &mut self.entries {
            entry.pending = false;
        }
    }

    /// Back to how the function came up: switched off, every vector masked.
    pub fn reset(&mut self) {
        self.entries.fill(Entry::RESET);
        self.control = 0;
        self.may_send = false;
    }

    /// How many messages the hypervisor refused so far.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Reads the table with an aligned access of 4 or 8 bytes; any other reads all ones.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if !is_table_access(offset, data.len()) {
            return;
        }
        for (word, bytes) in (offset / 4..).zip(data.chunks_exact_mut(4)) {
            let value = self.word(word).unwrap_or(0);
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Writes the table with an aligned access of 4 or 8 bytes; any other is ignored.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        if !is_table_access(offset, data.len()) {
            return;
        }
        for (word, bytes) in (offset / 4..).zip(data.chunks_exact(4)) {
            if let (Some(slot), Ok(bytes)) = (self.word_mut(word), bytes.try_into()) {
                *slot = u32::from_le_bytes(bytes);
            }
        }
        self.deliver_pending();
    }

    /// Reads the pending bits, one a vector.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (position, byte) in (offset..).zip(data) {
            let first = usize::try_from(position)
                .unwrap_or(usize::MAX)
                .saturating_mul(8);
            let bits = self.entries.iter().skip(first).take(8);
            *byte = bits
                .zip(0..)
                .fold(0, |all, (entry, bit)| all | u8::from(entry.pending) << bit);
        }
    }

    /// Table and pending bits, for a saved state. The control register is part of the
    /// function's configuration space.
    #[must_use]
    pub fn save(&self) -> MsixState {
        MsixState {
            table: self.entries.iter().flat_map(|entry| entry.words).collect(),
            pending: self.entries.iter().map(|entry| entry.pending).collect(),
        }
    }

    /// Takes back what [`Self::save`] gave; `false` when it has another number of vectors.
    /// Nothing is delivered until [`Self::set_control`].
    #[must_use]
    pub fn restore(&mut self, state: &MsixState) -> bool {
        let (words, rest) = state.table.as_chunks::<4>();
        let count = self.entries.len();
        if words.len() != count || !rest.is_empty() || state.pending.len() != count {
            return false;
        }
        self.control = 0;
        let saved = words.iter().zip(&state.pending);
        self.entries = saved
            .map(|(&words, &pending)| Entry { words, pending })
            .collect();
        true
    }

    fn is_blocked(&self) -> bool {
        !self.may_send || self.control & CONTROL_FUNCTION_MASK != 0
    }

    fn deliver_pending(&mut self) {
        if self.control & CONTROL_ENABLE == 0 || self.is_blocked() {
            return;
        }
        for entry in self
            .entries
            .iter_mut()
            .filter(|entry| entry.pending && !entry.is_masked())
        {
            entry.pending = false;
            if self.sink.signal(entry.message()).is_err() {
                self.refused += 1;
            }
        }
    }

    fn word(&self, word: u64) -> Option<u32> {
        let (entry, position) = split(word)?;
        self.entries.get(entry)?.words.get(position).copied()
    }

    fn word_mut(&mut self, word: u64) -> Option<&mut u32> {
        let (entry, position) = split(word)?;
        self.entries.get_mut(entry)?.words.get_mut(position)
    }
}

fn split(word: u64) -> Option<(usize, usize)> {
    Some((
        usize::try_from(word / 4).ok()?,
        usize::try_from(word % 4).ok()?,
    ))
}

fn is_table_access(offset: u64, len: usize) -> bool {
    matches!(len, 4 | 8) && offset.is_multiple_of(len as u64)
}

/// The saved vectors of one function.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MsixState {
    /// Four words a vector, as the guest sees them.
    #[prost(fixed32, repeated, tag = "1")]
    pub table: Vec<u32>,
    /// One pending bit a vector.
    #[prost(bool, repeated, tag = "2")]
    pub pending: Vec<bool>,
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io;
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;
    use crate::interrupt::MsiRoute;

    /// Keeps the messages it was given.
    #[derive(Default)]
    pub(crate) struct RecordedMessages {
        pub(crate) messages: Mutex<Vec<MsiMessage>>,
    }

    impl MsiSink for RecordedMessages {
        fn signal(&self, message: MsiMessage) -> io::Result<()> {
            if message.address == 0 {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            self.messages.lock().unwrap().push(message);
            Ok(())
        }

        fn route(&self) -> io::Result<Box<dyn MsiRoute>> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    impl RecordedMessages {
        pub(crate) fn take(&self) -> Vec<u32> {
            let messages = std::mem::take(&mut *self.messages.lock().unwrap());
            messages.iter().map(|message| message.data).collect()
        }
    }

    fn program(msix: &mut Msix, vector: u64, control: u32) {
        let data = 0x40 + u32::try_from(vector).unwrap();
        for (word, value) in (0..).zip([0xfee0_0000, 0, data, control]) {
            msix.write_table(vector * 16 + word * 4, &u32::to_le_bytes(value));
        }
    }

    fn msix(vectors: u16) -> (Msix, Arc<RecordedMessages>) {
        let sink = Arc::new(RecordedMessages::default());
        let mut msix = Msix::new(vectors, sink.clone());
        msix.set_control(CONTROL_ENABLE, true);
        (msix, sink)
    }

    #[test]
    fn a_programmed_vector_sends_its_message() {
        let (mut msix, sink) = msix(2);
        program(&mut msix, 1, 0);
        msix.signal(1);
        let expected = MsiMessage {
            address: 0xfee0_0000,
            data: 0x41,
        };
        assert_eq!(*sink.messages.lock().unwrap(), [expected]);
        assert_eq!((msix.message(1), msix.message(0)), (Some(expected), None));
        let mut entry = [0; 8];
        msix.read_table(24, &mut entry);
        assert_eq!(entry, [0x41, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_masked_vector_stays_pending_and_is_sent_once_when_unmasked() {
        let (mut msix, sink) = msix(9);
        program(&mut msix, 8, VECTOR_MASKED);
        msix.signal(8);
        msix.signal(8);
        let mut bits = [0; 8];
        msix.read_pending(0, &mut bits);
        assert_eq!(bits, [0, 1, 0, 0, 0, 0, 0, 0]);
        assert!(sink.take().is_empty());
        program(&mut msix, 8, 0);
        assert_eq!(sink.take(), [0x48]);
        msix.read_pending(0, &mut bits);
        assert_eq!(bits, [0; 8]);
    }

    #[test]
    fn the_function_mask_and_a_lost_bus_mastership_hold_all_vectors() {
        let (mut msix, sink) = msix(2);
        program(&mut msix, 0, 0);
        for (control, may_send) in [
            (CONTROL_ENABLE | CONTROL_FUNCTION_MASK, true),
            (CONTROL_ENABLE, false),
        ] {
            msix.set_control(control, may_send);
            msix.signal(0);
            assert!(sink.take().is_empty());
            msix.set_control(CONTROL_ENABLE, true);
            assert_eq!(sink.take(), [0x40]);
        }
    }

    #[test]
    fn nothing_is_sent_or_kept_while_msix_is_off() {
        let (mut msix, sink) = msix(1);
        program(&mut msix, 0, 0);
        msix.set_control(0, true);
        msix.signal(0);
        msix.set_control(CONTROL_ENABLE, true);
        assert!(sink.take().is_empty());
    }

    #[test]
    fn refused_messages_and_unknown_vectors_are_survived() {
        let (mut msix, sink) = msix(1);
        msix.write_table(12, &0_u32.to_le_bytes());
        msix.signal(0);
        msix.signal(1);
        msix.signal(0xffff);
        assert_eq!(msix.refused(), 1);
        assert!(sink.take().is_empty());
    }

    #[test]
    fn a_saved_table_comes_back_with_its_pending_bits() {
        let (mut saved, _) = msix(3);
        program(&mut saved, 2, VECTOR_MASKED);
        saved.signal(2);
        let state = saved.save();
        let (mut restored, sink) = msix(3);
        assert!(restored.restore(&state));
        restored.set_control(CONTROL_ENABLE, true);
        assert_eq!(restored.save(), state);
        restored.write_table(2 * 16 + 12, &[0; 4]);
        assert_eq!(sink.take(), [0x42]);
        let (mut other, _) = msix(2);
        assert!(!other.restore(&state));
    }

    proptest! {
        #[test]
        fn no_access_panics_and_each_interrupt_is_sent_or_pending(
            accesses in prop::collection::vec((any::<bool>(), 0_u64..80, prop::collection::vec(any::<u8>(), 0..12)), 0..32),
            vector in 0_u16..6,
        ) {
            let (mut msix, _) = msix(4);
            for (write, offset, mut data) in accesses {
                if write {
                    msix.write_table(offset, &data);
                } else {
                    msix.read_table(offset, &mut data);
                    msix.read_pending(offset, &mut data);
                }
            }
            let masked = msix.word(u64::from(vector) * 4 + 3).map(|control| control & 1 == 1);
            msix.clear_pending();
            msix.signal(vector);
            let pending = msix.entries.get(usize::from(vector)).map(|entry| entry.pending);
            prop_assert_eq!(pending, masked);
        }
    }
}
