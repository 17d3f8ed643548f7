//! Kubernetes quantities: `500m`, `128Mi`, `1.5`, `2e3` (apimachinery,
//! `pkg/api/resource/quantity.go`).

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{Deserializer, Visitor};
use thiserror::Error;

const NANOS_PER_UNIT: i128 = 1_000_000_000;
const NANOS_PER_MILLI: i128 = 1_000_000;

/// An amount of something that people write down: CPUs, bytes; never negative, exact to a billionth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity {
    nanos: i128,
}

/// Why a text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text:?} is not a quantity such as 500m, 2 or 128Mi")]
pub struct QuantityError {
    text: String,
}

impl Quantity {
    /// In thousandths, as CPUs are counted; rounded up.
    pub fn milli(self) -> i64 {
        saturate(div_ceil(self.nanos, NANOS_PER_MILLI))
    }

    /// In whole units, as CRI counts bytes; rounded up.
    pub fn units(self) -> i64 {
        saturate(div_ceil(self.nanos, NANOS_PER_UNIT))
    }

    /// In whole units, as a machine's memory is counted; rounded up.
    pub fn bytes(self) -> u64 {
        self.units().unsigned_abs()
    }
}

fn div_ceil(dividend: i128, divisor: i128) -> i128 {
    dividend / divisor + i128::from(dividend % divisor != 0)
}

fn saturate(number: i128) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        parse(text).ok_or_else(|| QuantityError {
            text: text.to_owned(),
        })
    }
}

fn parse(text: &str) -> Option<Quantity> {
    let number_len = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(number_len);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let digits = format!("{whole}{fraction}");
    let mantissa: i128 = digits.parse().ok()?;
    let (factor, divisor) = scale(suffix)?;
    let decimals = u32::try_from(fraction.len()).ok()?;
    let divisor = divisor.checked_mul(10_i128.checked_pow(decimals)?)?;
    let nanos = mantissa.checked_mul(factor)?.checked_mul(NANOS_PER_UNIT)?;
    Some(Quantity {
        nanos: div_ceil(nanos, divisor),
    })
}

/// What a suffix multiplies and divides by.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    let thousand = |power| 1000_i128.checked_pow(power);
    let kibi = |power| 1024_i128.checked_pow(power);
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, thousand(3)?),
        "u" => (1, thousand(2)?),
        "m" => (1, thousand(1)?),
        "k" => (thousand(1)?, 1),
        "M" => (thousand(2)?, 1),
        "G" => (thousand(3)?, 1),
        "T" => (thousand(4)?, 1),
        "P" => (thousand(5)?, 1),
        "E" => (thousand(6)?, 1),
        "Ki" => (kibi(1)?, 1),
        "Mi" => (kibi(2)?, 1),
        "Gi" => (kibi(3)?, 1),
        "Ti" => (kibi(4)?, 1),
        "Pi" => (kibi(5)?, 1),
        "Ei" => (kibi(6)?, 1),
        _ => return exponent(suffix),
    })
}

/// The scale of `e3`, `E-2` and the like.
fn exponent(suffix: &str) -> Option<(i128, i128)> {
    let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let scale = 10_i128.checked_pow(power.unsigned_abs())?;
    Some(if power < 0 { (1, scale) } else { (scale, 1) })
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QuantityVisitor)
    }
}

/// Manifests may write a quantity as a string or as a number.
struct QuantityVisitor;

impl Visitor<'_> for QuantityVisitor {
    type Value = Quantity;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a quantity such as 500m, 2 or 128Mi")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Quantity, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Quantity, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Quantity, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Quantity, E> {
        self.visit_str(&number.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quantity(text: &str) -> Quantity {
        text.parse().unwrap()
    }

    #[test]
    fn suffixes_are_decimal_or_binary() {
        for (text, units) in [
            ("0", 0),
            ("128Mi", 128 << 20),
            ("1Gi", 1 << 30),
            ("1.5Gi", 3 << 29),
            ("64M", 64_000_000),
            ("1e3", 1000),
            ("1E3", 1000),
            ("1E", 1_000_000_000_000_000_000),
            ("2500e-2", 25),
            (".5k", 500),
        ] {
            assert_eq!(quantity(text).units(), units, "{text}");
        }
    }

    #[test]
    fn cpus_are_counted_in_thousandths_rounded_up() {
        for (text, milli) in [
            ("500m", 500),
            ("2", 2000),
            ("0.1", 100),
            ("1.0005", 1001),
            ("1n", 1),
        ] {
            assert_eq!(quantity(text).milli(), milli, "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in [
            "", ".", "Mi", "-1", "1 Gi", "1Xi", "1.2.3", "1e", "0x10", "1e99",
        ] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_quantities_too() {
        let list: Vec<Quantity> = serde_json::from_str(r#"[2, 0.5, "250m"]"#).unwrap();
        assert_eq!(
            list.iter().map(|q| q.milli()).collect::<Vec<_>>(),
            [2000, 500, 250]
        );
        assert!(serde_json::from_str::<Quantity>("-1").is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = text.parse::<Quantity>();
        }

        #[test]
        fn whole_numbers_are_themselves(number in 0..i64::MAX) {
            prop_assert_eq!(quantity(&number.to_string()).units(), number);
        }
    }
}
