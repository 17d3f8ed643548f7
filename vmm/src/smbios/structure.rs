//! One structure of the tables: a formatted area, then the strings it refers to by number.

use super::text::Text;

/// Type and handle of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle(pub(super) u16);

/// Length of type, length and handle.
const HEADER_LEN: usize = 4;

/// A structure under construction.
pub(super) struct Structure {
    bytes: Vec<u8>,
    strings: Vec<u8>,
    count: u8,
}

impl Structure {
    pub(super) fn new(kind: u8, handle: Handle) -> Self {
        let mut bytes = Vec::with_capacity(64);
        // The length is known in the end.
        bytes.extend([kind, 0]);
        bytes.extend(handle.0.to_le_bytes());
        debug_assert_eq!(bytes.len(), HEADER_LEN);
        Self {
            bytes,
            strings: Vec::new(),
            count: 0,
        }
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    pub(super) fn byte(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    pub(super) fn word(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn dword(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn qword(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A reference to a string of this program's own.
    pub(super) fn name(mut self, text: &str) -> Self {
        let number = self.add(text);
        self.byte(number)
    }

    /// A reference to a string, or none.
    pub(super) fn text<const MAX: usize>(self, text: Option<&Text<MAX>>) -> Self {
        match text {
            Some(text) => self.name(text.as_str()),
            None => self.byte(0),
        }
    }

    /// A reference to a string that has a default.
    pub(super) fn text_or<const MAX: usize>(self, text: Option<&Text<MAX>>, default: &str) -> Self {
        let text = text.map_or(default, Text::as_str);
        self.name(text)
    }

    /// Adds a string and tells its number.
    pub(super) fn add(&mut self, text: &str) -> u8 {
        self.strings.extend(text.as_bytes());
        self.strings.push(0);
        self.count = self.count.saturating_add(1);
        self.count
    }

    /// Appends the structure to `table`.
    pub(super) fn finish(mut self, table: &mut Vec<u8>) {
        let len = u8::try_from(self.bytes.len()).unwrap_or(u8::MAX);
        debug_assert_eq!(usize::from(len), self.bytes.len());
        if let Some(place) = self.bytes.get_mut(1) {
            *place = len;
        }
        table.extend(self.bytes);
        // Without strings, two zeroes end the structure.
        if self.strings.is_empty() {
            table.push(0);
        }
        table.extend(self.strings);
        table.push(0);
    }
}
