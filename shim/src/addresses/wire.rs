//! Lists in messages of limited length.

/// Those of the parts, from the first on, that fit into `len_max` bytes, one behind the other.
pub fn fitting(parts: impl Iterator<Item = Vec<u8>>, len_max: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        if bytes.len() + part.len() > len_max {
            break;
        }
        bytes.extend(part);
    }
    bytes
}

/// Names as DNS has them (RFC 1035, 3.1), not compressed: those that fit. Domains are searched in
/// their order, so the last ones are left out.
pub fn names(names: &[String], len_max: usize) -> Vec<u8> {
    fitting(names.iter().map(|name| encoded(name)), len_max)
}

fn encoded(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        // A resolver's names are checked when they are read: no label is longer than 63.
        bytes.push(u8::try_from(label.len()).unwrap_or_default());
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_before_the_first_that_does_not_fit() {
        let search = ["a.test", "long.test", "b"].map(str::to_owned);
        assert_eq!(names(&search, usize::MAX).len(), 8 + 11 + 3);
        assert_eq!(names(&search, 18), b"\x01a\x04test\0");
        assert_eq!(names(&search, 7), b"");
    }
}
