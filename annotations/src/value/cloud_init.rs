//! Where the machine's cloud-init data comes from.

use std::str::FromStr;

use super::path::VolumePath;
use crate::{Kind, ValueError};

/// Beginnings of user-data in MIME form (cloud-init, "User-data formats").
const MIME: [&str; 3] = ["Content-Type: multipart/", "MIME-Version: ", "From nobody "];

/// cloud-init data for a NoCloud seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloudInit {
    /// The volume at this path has `user-data` and, if it wants, `meta-data` and `network-config`.
    Volume(VolumePath),
    /// The user-data itself.
    UserData(String),
}

impl CloudInit {
    /// Longest user-data in bytes: a pod's annotations together have at most 256 KiB.
    pub const MAX_LEN: usize = 128 << 10;
    const WHAT: &'static str = "the absolute path of a volume, or user-data that begins with # or is multipart, of at most 128 KiB";
    /// The form of it.
    pub const KIND: Kind = Kind::Text {
        pattern: r"(?s)^(/([^/\n]+(/[^/\n]+)*)?|#.*|Content-Type: multipart/.*|MIME-Version: .*|From nobody .*)$",
        max_len: Self::MAX_LEN,
        what: Self::WHAT,
    };
}

impl FromStr for CloudInit {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text.starts_with('/') {
            return text.parse().map(Self::Volume);
        }
        let is_user_data =
            text.starts_with('#') || MIME.iter().any(|start| text.starts_with(start));
        if is_user_data && text.len() <= Self::MAX_LEN {
            return Ok(Self::UserData(text.to_owned()));
        }
        Err(ValueError::new(text, Self::WHAT))
    }
}
