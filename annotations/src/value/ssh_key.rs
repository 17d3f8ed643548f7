//! SSH public keys in the form of `authorized_keys`, without options.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

text! {
    /// A public key: its type, its blob in base64, and perhaps a comment.
    SshKey: r"^(ssh-|ecdsa-sha2-|sk-)[a-z0-9@.-]+ [A-Za-z0-9+/]+={0,2}( [^\n]*)?$", at most 4096, is_public_key,
    "an SSH public key: type, base64, comment, without options, such as \"ssh-ed25519 AAAA… me\""
}

impl SshKey {
    /// Most keys of a pod.
    pub const MAX_COUNT: usize = 32;
    /// The form of a list of them: one a line, or a YAML list.
    pub const LINES: crate::Kind = crate::Kind::Text {
        pattern: r"(?s)^.*(ssh-|ecdsa-sha2-|sk-).*$",
        max_len: 64 << 10,
        what: "SSH public keys (type, base64, comment, without options): one a line, or a YAML list",
    };
}

/// The types that OpenSSH knows.
const TYPES: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

fn is_public_key(text: &str) -> bool {
    let mut parts = text.splitn(3, ' ');
    let (kind, blob) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let comment = parts.next().unwrap_or_default();
    if !TYPES.contains(&kind) || comment.chars().any(char::is_control) {
        return false;
    }
    STANDARD
        .decode(blob)
        .is_ok_and(|blob| is_blob_of(&blob, kind))
}

/// Whether `blob` is made of strings with their length before them, the first of which is the type
/// and which are followed by nothing (RFC 4253, section 6.6).
fn is_blob_of(blob: &[u8], kind: &str) -> bool {
    let mut rest = blob;
    let mut count = 0;
    while let Some((len, after)) = rest.split_first_chunk() {
        let len = u32::from_be_bytes(*len);
        let Some((string, after)) = usize::try_from(len)
            .ok()
            .and_then(|len| after.split_at_checked(len))
        else {
            return false;
        };
        if count == 0 && string != kind.as_bytes() {
            return false;
        }
        count += 1;
        rest = after;
    }
    rest.is_empty() && count > 1
}
