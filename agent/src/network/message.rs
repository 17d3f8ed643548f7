//! Building rtnetlink messages (netlink(7), rtnetlink(7)).

/// Length of `struct nlmsghdr`.
pub const HEADER_LEN: usize = 16;

/// Flags of a request (linux/netlink.h).
pub const REQUEST: u16 = 0x1;
/// The kernel answers with a result.
pub const ACK: u16 = 0x4;
/// Replace an existing object.
pub const REPLACE: u16 = 0x100;
/// Fail when the object exists.
pub const EXCLUSIVE: u16 = 0x200;
/// Make the object when it does not exist.
pub const CREATE: u16 = 0x400;

/// One request under construction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// Starts a message of type `kind` with its fixed part.
    #[must_use]
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | REQUEST | ACK).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(fixed);
        let mut message = Self { bytes };
        message.pad();
        message
    }

    /// Appends an attribute.
    #[must_use]
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        // Values come from messages of at most 4 MiB, but no field that gets
        // here is longer than a name; a longer one is cut and refused by the kernel.
        let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend(len.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value.iter().take(usize::from(len) - 4));
        self.pad();
        self
    }

    /// Appends a number.
    #[must_use]
    pub fn number(self, kind: u16, value: u32) -> Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// Appends a name with its terminating NUL.
    #[must_use]
    pub fn name(self, kind: u16, name: &str) -> Self {
        let mut value = name.as_bytes().to_vec();
        value.push(0);
        self.attribute(kind, &value)
    }

    /// Appends an attribute unless its value is empty.
    #[must_use]
    pub fn optional(self, kind: u16, value: &[u8]) -> Self {
        if value.is_empty() {
            self
        } else {
            self.attribute(kind, value)
        }
    }

    /// The finished message under a sequence number.
    #[must_use]
    pub fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        for (at, value) in [(0, len), (8, sequence)] {
            if let Some(field) = self.bytes.get_mut(at..at + 4) {
                field.copy_from_slice(&value.to_ne_bytes());
            }
        }
        self.bytes
    }

    /// The bytes so far, of [`attributes`] that have neither length nor sequence number.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Attributes alone, for nesting inside another one.
#[must_use]
pub fn attributes() -> Message {
    Message { bytes: Vec::new() }
}

/// errno of the result with this sequence number in a datagram; `Some(0)` is
/// success, `None` when it holds no such result.
#[must_use]
pub fn result_in(datagram: &[u8], sequence: u32) -> Option<i32> {
    const ERROR: u16 = 2;
    let mut rest = datagram;
    loop {
        let len = usize::try_from(u32_at(rest, 0)?).ok()?;
        let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
        if kind == ERROR && u32_at(rest, 8)? == sequence {
            let code = u32_at(rest, HEADER_LEN)?.cast_signed();
            return Some(code.checked_neg().unwrap_or(i32::MAX));
        }
        rest = rest.get(len.max(HEADER_LEN).next_multiple_of(4)..)?;
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_are_padded_and_the_length_covers_all() {
        let bytes = Message::new(16, CREATE, &[0; 16]).name(3, "eth0").finish(7);
        assert_eq!(bytes.len(), 16 + 16 + 12);
        assert_eq!(bytes[0..4], 44_u32.to_ne_bytes());
        assert_eq!(bytes[8..12], 7_u32.to_ne_bytes());
        assert_eq!(bytes[32..36], [9, 0, 3, 0]);
        assert_eq!(&bytes[36..41], b"eth0\0");
    }

    #[test]
    fn a_result_is_found_by_its_sequence() {
        let result = |sequence: u32, code: i32| {
            let mut bytes = Message::new(2, 0, &code.to_ne_bytes()).finish(sequence);
            bytes.extend([0; 16]);
            let len = u32::try_from(bytes.len()).unwrap();
            bytes[0..4].copy_from_slice(&len.to_ne_bytes());
            bytes
        };
        let datagram = [result(1, 0), result(2, -17)].concat();
        assert_eq!(result_in(&datagram, 1), Some(0));
        assert_eq!(result_in(&datagram, 2), Some(17));
        assert_eq!(result_in(&datagram, 3), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics_nor_loops(bytes: Vec<u8>, sequence: u32) {
            let _ = result_in(&bytes, sequence);
        }
    }
}
