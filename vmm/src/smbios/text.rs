//! Text in SMBIOS tables: what a table can carry, in bounded lengths.

use thiserror::Error;

/// A string that an SMBIOS table cannot carry.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TextError {
    /// An empty string ends a table.
    #[error("an empty string")]
    Empty,
    /// Too long.
    #[error("{len} bytes: at most {max} are taken")]
    Len {
        /// Its length in bytes.
        len: usize,
        /// The longest.
        max: usize,
    },
    /// Something else than printable ASCII.
    #[error("a byte {byte:#04x} at {position}: only printable ASCII is taken")]
    Byte {
        /// The offending byte.
        byte: u8,
        /// Where it stands.
        position: usize,
    },
    /// Too many OEM strings, or too long together.
    #[error("{count} strings of {len} bytes: at most {max_count} of {max_len} are taken", max_count = OemStrings::MAX_COUNT, max_len = OemStrings::MAX_LEN)]
    TooMany {
        /// How many.
        count: usize,
        /// Their length together.
        len: usize,
    },
}

/// Printable ASCII, 1 to `MAX` bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text<const MAX: usize>(String);

/// A name or a number in a table; twice what Linux shows of one.
pub type SmbiosText = Text<128>;
/// Free text; long enough for a short credential of systemd.
pub type OemString = Text<1024>;

impl<const MAX: usize> Text<MAX> {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> TryFrom<&str> for Text<MAX> {
    type Error = TextError;

    fn try_from(text: &str) -> Result<Self, TextError> {
        if text.is_empty() {
            return Err(TextError::Empty);
        }
        if text.len() > MAX {
            return Err(TextError::Len {
                len: text.len(),
                max: MAX,
            });
        }
        let mut bytes = text.bytes().enumerate();
        match bytes.find(|(_, byte)| !matches!(byte, b' '..=b'~')) {
            Some((position, byte)) => Err(TextError::Byte { byte, position }),
            None => Ok(Self(text.to_owned())),
        }
    }
}

/// A list of OEM strings that has its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OemStrings(Vec<OemString>);

impl OemStrings {
    /// Most strings; a structure counts them in a byte.
    pub const MAX_COUNT: usize = 64;
    /// Most bytes of all together: a quarter of the tables' place.
    pub const MAX_LEN: usize = 16 << 10;

    /// The strings.
    #[must_use]
    pub fn as_slice(&self) -> &[OemString] {
        &self.0
    }
}

impl TryFrom<Vec<OemString>> for OemStrings {
    type Error = TextError;

    fn try_from(strings: Vec<OemString>) -> Result<Self, TextError> {
        let (count, len) = (
            strings.len(),
            strings.iter().map(|text| text.0.len()).sum::<usize>(),
        );
        if count > Self::MAX_COUNT || len > Self::MAX_LEN {
            return Err(TextError::TooMany { count, len });
        }
        Ok(Self(strings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_printable_text_of_bounded_length_is_taken() {
        assert_eq!(SmbiosText::try_from("Pod 1").unwrap().as_str(), "Pod 1");
        assert_eq!(SmbiosText::try_from(""), Err(TextError::Empty));
        let byte = |byte, position| Err(TextError::Byte { byte, position });
        assert_eq!(SmbiosText::try_from("a\0b"), byte(0, 1));
        assert_eq!(SmbiosText::try_from("\u{e9}"), byte(0xc3, 0));
        let long = "x".repeat(129);
        let refused = TextError::Len { len: 129, max: 128 };
        assert_eq!(SmbiosText::try_from(long.as_str()), Err(refused));
        assert_eq!(
            SmbiosText::try_from(&long[1..]).unwrap().as_str().len(),
            128
        );
    }

    #[test]
    fn oem_strings_are_bounded_together() {
        let strings = |count, len| {
            let text = OemString::try_from("x".repeat(len).as_str()).unwrap();
            OemStrings::try_from(vec![text; count])
        };
        assert_eq!(strings(16, 1024).unwrap().as_slice().len(), 16);
        assert!(strings(17, 1024).is_err());
        assert!(strings(65, 1).is_err());
    }
}
