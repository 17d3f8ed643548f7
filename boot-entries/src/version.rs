//! Order of versions (UAPI group, Version Format Specification).

use std::cmp::Ordering;

/// Compares two versions: numbers as numbers, `~` before everything, `-` before `^` before `.`.
#[must_use]
pub fn compare(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.as_bytes(), right.as_bytes());
    loop {
        left = skip_foreign(left);
        right = skip_foreign(right);
        for (mark, absent_is_greater) in [(b'~', true), (b'-', false), (b'^', false), (b'.', false)]
        {
            // The end sorts after a pre-release and before all else.
            let has = |rest: &[u8]| rest.first() == Some(&mark);
            match (has(left), has(right)) {
                (true, true) => {
                    left = left.get(1..).unwrap_or_default();
                    right = right.get(1..).unwrap_or_default();
                }
                (true, false) if absent_is_greater => return Ordering::Less,
                (false, true) if absent_is_greater => return Ordering::Greater,
                (true, false) => return shorter(right, Ordering::Less),
                (false, true) => return shorter(left, Ordering::Less).reverse(),
                (false, false) => continue,
            }
            break;
        }
        if left.is_empty() || right.is_empty() {
            return left.len().cmp(&right.len());
        }
        let order = compare_run(&mut left, &mut right);
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// How a version with a mark compares with `other`, which has none here.
fn shorter(other: &[u8], with_more: Ordering) -> Ordering {
    if other.is_empty() {
        Ordering::Greater
    } else {
        with_more
    }
}

/// Compares and removes a run of digits, or one of letters, at the start of both.
fn compare_run(left: &mut &[u8], right: &mut &[u8]) -> Ordering {
    let is_digit = |rest: &[u8]| rest.first().is_some_and(u8::is_ascii_digit);
    if is_digit(left) || is_digit(right) {
        let (a, b) = (
            take(left, u8::is_ascii_digit),
            take(right, u8::is_ascii_digit),
        );
        let (a, b) = (without_zeros(a), without_zeros(b));
        return a.len().cmp(&b.len()).then_with(|| a.cmp(b));
    }
    let (a, b) = (
        take(left, u8::is_ascii_alphabetic),
        take(right, u8::is_ascii_alphabetic),
    );
    a.cmp(b)
}

fn take<'a>(rest: &mut &'a [u8], of_kind: impl Fn(&u8) -> bool) -> &'a [u8] {
    let end = rest
        .iter()
        .position(|byte| !of_kind(byte))
        .unwrap_or(rest.len());
    let (run, after) = rest.split_at(end);
    *rest = after;
    run
}

fn without_zeros(digits: &[u8]) -> &[u8] {
    let start = digits.iter().position(|digit| *digit != b'0');
    digits
        .get(start.unwrap_or(digits.len())..)
        .unwrap_or_default()
}

fn skip_foreign(version: &[u8]) -> &[u8] {
    let counts = |byte: &u8| byte.is_ascii_alphanumeric() || b"~-^.".contains(byte);
    let start = version.iter().position(counts).unwrap_or(version.len());
    version.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn kernels_are_ordered_by_their_numbers() {
        let ascending = [
            "5.4.0",
            "5.10.0-9-amd64",
            "5.10.0-19-amd64",
            "6.1.0",
            "6.12~rc1",
            "6.12",
            "6.12-1",
            "6.12.1",
            "6.12.57+deb13-amd64",
            "6.12.107+deb13-amd64",
        ];
        for (at, lower) in ascending.iter().enumerate() {
            for higher in ascending.get(at + 1..).unwrap() {
                assert_eq!(compare(lower, higher), Ordering::Less, "{lower} {higher}");
                assert_eq!(compare(higher, lower), Ordering::Greater);
            }
        }
    }

    #[test]
    fn leading_zeros_and_foreign_characters_do_not_count() {
        assert_eq!(compare("1.02", "1.2"), Ordering::Equal);
        assert_eq!(compare("1_2", "1+2"), Ordering::Equal);
    }

    proptest! {
        #[test]
        fn any_two_strings_have_an_order(a in ".{0,24}", b in ".{0,24}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            prop_assert_eq!(compare(&a, &a), Ordering::Equal);
        }
    }
}
