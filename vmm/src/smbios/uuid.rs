//! The identity of a machine (RFC 9562).

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Text that is no UUID.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' is no UUID: it is written as 8-4-4-4-12 hexadecimal digits")]
pub struct UuidError(String);

/// 16 bytes in the order in which they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uuid([u8; 16]);

/// Digits of the groups that dashes separate.
const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];

impl Uuid {
    /// The bytes in the order in which they are written.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The bytes as SMBIOS has them: the first three fields little-endian (DSP0134, 7.2.1).
    #[must_use]
    pub fn to_wire(self) -> [u8; 16] {
        let mut wire = self.0;
        let (fields, _) = wire.split_at_mut(8);
        let (first, rest) = fields.split_at_mut(4);
        let (second, third) = rest.split_at_mut(2);
        for field in [first, second, third] {
            field.reverse();
        }
        wire
    }
}

impl From<[u8; 16]> for Uuid {
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Uuid {
    type Err = UuidError;

    fn from_str(text: &str) -> Result<Self, UuidError> {
        let malformed = || UuidError(text.to_owned());
        if !text.split('-').map(str::len).eq(GROUPS) {
            return Err(malformed());
        }
        let mut digits = text.chars().filter(|&c| c != '-');
        let mut digit = || digits.next()?.to_digit(16);
        let mut bytes = [0; 16];
        for byte in &mut bytes {
            let value = digit().zip(digit()).map(|(high, low)| high << 4 | low);
            let value = value.and_then(|value| u8::try_from(value).ok());
            *byte = value.ok_or_else(malformed)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "00112233-4455-6677-8899-aabbccddeeff";

    #[test]
    fn the_first_fields_are_little_endian_on_the_wire() {
        // The example of DSP0134, 7.2.1.
        let uuid: Uuid = TEXT.parse().unwrap();
        let wire = [
            0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd,
            0xee, 0xff,
        ];
        assert_eq!(uuid.to_wire(), wire);
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "00112233445566778899aabbccddeeff",
            "00112233-4455-6677-8899-aabbccddeef",
            "0011223x-4455-6677-8899-aabbccddeeff",
            "+0112233-4455-6677-8899-aabbccddeeff",
            "00112233-4455-6677-8899-aabbccddeeff-",
        ] {
            assert_eq!(text.parse::<Uuid>(), Err(UuidError(text.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn text_and_bytes_are_the_same_thing(bytes: [u8; 16]) {
            prop_assert_eq!(Uuid::from(bytes).to_string().parse(), Ok(Uuid::from(bytes)));
        }

        #[test]
        fn no_text_panics(text in "[0-9a-f-]{36}|.{0,40}") {
            let _ = text.parse::<Uuid>();
        }
    }
}
