//! Kubernetes quantities of bytes: `134217728`, `128Mi`, `1G`
//! (apimachinery, `pkg/api/resource/quantity.go`), without fractions and exponents.

use thiserror::Error;

/// Not a quantity of bytes.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is no quantity of bytes such as 512Mi")]
pub struct QuantityError(String);

const SUFFIXES: [(&str, u64); 9] = [
    ("", 1),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
];

/// Parses a quantity of bytes.
///
/// # Errors
/// [`QuantityError`] when `text` is none, or more than 64 bits hold.
pub fn parse_bytes(text: &str) -> Result<u64, QuantityError> {
    let invalid = || QuantityError(text.to_owned());
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, suffix) = text.split_at_checked(end).ok_or_else(invalid)?;
    let number: u64 = digits.parse().map_err(|_| invalid())?;
    let (_, factor) = SUFFIXES
        .iter()
        .find(|(name, _)| *name == suffix)
        .ok_or_else(invalid)?;
    number.checked_mul(*factor).ok_or_else(invalid)
}

/// A size for people: whole MiB, rounded up.
pub fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn suffixes_are_those_of_kubernetes() {
        assert_eq!(parse_bytes("0"), Ok(0));
        assert_eq!(parse_bytes("1k"), Ok(1000));
        assert_eq!(parse_bytes("128Mi"), Ok(128 << 20));
        assert_eq!(parse_bytes("2Gi"), Ok(2 << 30));
        for wrong in [
            "",
            "Mi",
            "-1",
            "1.5Gi",
            "12parsecs",
            "1 Gi",
            "18446744073709551616",
            "99999999Ti",
        ] {
            assert_eq!(parse_bytes(wrong), Err(QuantityError(wrong.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn plain_numbers_are_bytes(number: u64) {
            prop_assert_eq!(parse_bytes(&number.to_string()), Ok(number));
        }

        #[test]
        fn nothing_panics(text in ".{0,40}") {
            let _ = parse_bytes(&text);
        }
    }
}
