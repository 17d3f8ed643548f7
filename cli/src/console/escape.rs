//! What is typed to leave.

/// Ctrl-], which telnet and virsh have for it.
const ESCAPE: u8 = 0x1d;

/// What of `typed` goes to the console, and whether it is left then.
pub fn until_escape(typed: &[u8]) -> (&[u8], bool) {
    match typed.iter().position(|byte| *byte == ESCAPE) {
        Some(position) => (typed.get(..position).unwrap_or_default(), true),
        None => (typed, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_before_the_escape_is_sent() {
        assert_eq!(until_escape(b"ls\r"), (&b"ls\r"[..], false));
        assert_eq!(until_escape(b"a\x1db"), (&b"a"[..], true));
        assert_eq!(until_escape(b"\x1d"), (&b""[..], true));
        // Ctrl-C and Ctrl-D are the guest's.
        assert_eq!(until_escape(b"\x03\x04"), (&b"\x03\x04"[..], false));
    }
}
