//! What is noted beside a disk that was filled: from what, and which copy it is.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use serde::{Deserialize, Serialize};

/// The disk of an image as a later start can tell it from another one without reading it: layers
/// keep names, lengths and times wherever they are unpacked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The image's name, for people.
    pub image: String,
    /// The disk's file in it.
    pub file: String,
    /// Length of that file in bytes.
    pub file_len: u64,
    /// When it was last changed, in seconds since the epoch.
    pub modified: i64,
}

/// What is noted of a filled disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Where its first content came from.
    pub origin: Origin,
    /// Tells this copy from every other one: 128 random bits, in hexadecimal.
    pub generation: String,
    /// The length in bytes of the device that it is noted at the end of. A record elsewhere on the device is
    /// another one's, such as that of a volume which the machine itself keeps in a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_len: Option<u64>,
}

impl Origin {
    /// The origin `file`, which is called `name` in `image`.
    ///
    /// # Errors
    /// When the host does not tell its length and time.
    pub fn of(image: &str, name: &str, file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            image: image.to_owned(),
            file: name.to_owned(),
            file_len: metadata.len(),
            modified: metadata.mtime(),
        })
    }

    /// Whether this is another disk than `now`; the name of the image alone says nothing.
    pub fn differs(&self, now: &Self) -> bool {
        (&self.file, self.file_len, self.modified) != (&now.file, now.file_len, now.modified)
    }
}

impl Record {
    /// The record of a copy that is made now.
    ///
    /// # Errors
    /// When the host has no random numbers.
    pub fn new(origin: Origin) -> io::Result<Self> {
        Ok(Self {
            origin,
            generation: format!("{:032x}", random()?),
            device_len: None,
        })
    }

    /// Its generation as a number.
    pub fn generation(&self) -> Option<u128> {
        u128::from_str_radix(&self.generation, 16).ok()
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        // It has nothing that JSON cannot say.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// 128 random bits.
///
/// # Errors
/// What the host said.
pub fn random() -> io::Result<u128> {
    use std::io::Read as _;
    let mut bits = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bits)?;
    Ok(u128::from_ne_bytes(bits))
}
