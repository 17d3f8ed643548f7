//! The types of values. None can hold a value that is not allowed.

#[macro_use]
mod macros;

pub mod address;
pub mod boot;
pub mod cloud_init;
pub mod cpu;
pub mod disk;
pub mod guest;
pub mod memory;
pub mod nic;
pub mod path;
pub mod smbios;
pub mod ssh_key;
pub mod yaml;

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

/// A scalar as it is written. YAML hands out a scalar's own text, so that `0010` stays what it looks
/// like; TOML hands out numbers.
pub(crate) struct ScalarText(pub(crate) String);

impl<'de> Deserialize<'de> for ScalarText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl Visitor<'_> for ScalarVisitor {
    type Value = ScalarText;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a number")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ScalarText, E> {
        Ok(ScalarText(text.to_owned()))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<ScalarText, E> {
        Ok(ScalarText(number.to_string()))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<ScalarText, E> {
        Ok(ScalarText(number.to_string()))
    }
}

/// A number as people write it: digits without sign or leading zeros.
pub(crate) fn whole_number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let plain = digits && (text.len() == 1 || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

/// What an amount should be, for people.
pub(crate) fn amount_expected(what: &str, min: u64, max: u64, unit: u64) -> String {
    let (min, max) = (readable_bytes(min), readable_bytes(max));
    match unit {
        1 => format!("{what} from {min} to {max}"),
        _ => format!(
            "{what} from {min} to {max} in whole {}",
            readable_bytes(unit)
        ),
    }
}

/// Bytes as a quantity with the largest unit that leaves a whole number.
pub(crate) fn readable_bytes(bytes: u64) -> String {
    const UNITS: [(u32, &str); 5] = [(50, "Pi"), (40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")];
    let unit = UNITS
        .into_iter()
        .find(|(shift, _)| bytes != 0 && bytes.is_multiple_of(1 << shift));
    match unit {
        Some((shift, name)) => format!("{}{name}", bytes >> shift),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_plain() {
        assert_eq!(whole_number("0"), Some(0));
        assert_eq!(whole_number("120"), Some(120));
        for text in [
            "",
            "+1",
            "-1",
            "01",
            "1 ",
            "1e3",
            "٣",
            "99999999999999999999",
        ] {
            assert_eq!(whole_number(text), None, "{text:?}");
        }
    }

    #[test]
    fn bytes_are_shown_as_quantities() {
        for (bytes, text) in [
            (0, "0"),
            (1000, "1000"),
            (1024, "1Ki"),
            (32 << 20, "32Mi"),
            (1 << 40, "1Ti"),
        ] {
            assert_eq!(readable_bytes(bytes), text);
        }
    }
}
