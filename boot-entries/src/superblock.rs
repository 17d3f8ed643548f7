//! What a device holds, told by the magic numbers at its beginning.
//!
//! Layouts: fs/ext4/ext4.h, fs/xfs/libxfs/xfs_format.h, fs/btrfs and fs/fat of Linux; for the
//! others only their magic counts.

use std::fmt;

/// Bytes of a device's beginning that are looked at: btrfs's superblock is the last.
pub const HEAD_LEN: usize = 0x1_1000;

/// File systems that a machine boots from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// ext2, ext3 or ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// FAT of any width.
    Vfat,
    /// btrfs.
    Btrfs,
}

impl FileSystem {
    /// Its name for mount(2).
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Vfat => "vfat",
            Self::Btrfs => "btrfs",
        }
    }
}

/// What a device holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A file system that can be read.
    FileSystem {
        /// Which.
        kind: FileSystem,
        /// Its UUID, or FAT's serial number, as udev writes it.
        uuid: Option<String>,
        /// Its label.
        label: Option<String>,
    },
    /// A physical volume of LVM.
    LvmVolume,
    /// Something known that nothing is booted from, in words.
    Other(&'static str),
    /// Zeros.
    Empty,
    /// Nothing that is known.
    Unknown,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FileSystem { kind, label, .. } => {
                f.write_str(kind.name())?;
                match label {
                    Some(label) => write!(f, ", label {label:?}"),
                    None => Ok(()),
                }
            }
            Self::LvmVolume => f.write_str("LVM physical volume"),
            Self::Other(what) => f.write_str(what),
            Self::Empty => f.write_str("empty"),
            Self::Unknown => f.write_str("unknown file system"),
        }
    }
}

/// Magic numbers of what nothing is booted from.
const OTHERS: &[(usize, &[u8], &str)] = &[
    (0, b"LUKS\xba\xbe", "encrypted with LUKS"),
    (4086, b"SWAPSPACE2", "swap"),
    (0, b"QFI\xfb", "a qcow2 image, not its contents"),
    (0, b"KDMV", "a VMDK image, not its contents"),
    (0, b"vhdxfile", "a VHDX image, not its contents"),
    (0, b"conectix", "a VHD image, not its contents"),
    (0, b"\x1f\x8b", "compressed with gzip"),
    (0, b"\xfd7zXZ", "compressed with xz"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (0, b"hsqs", "squashfs"),
    (1024, b"\xe2\xe1\xf5\xe0", "EROFS"),
    (1024, b"\x10\x20\xf5\xf2", "F2FS"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"EXFAT   ", "exFAT"),
    (0x8001, b"CD001", "ISO 9660"),
    (4096, b"\xfc\x4e\x2b\xa9", "member of a Linux RAID"),
];

/// Says what a device holds whose first bytes are `head`; fewer than [`HEAD_LEN`] when it is
/// smaller.
#[must_use]
pub fn identify(head: &[u8]) -> Content {
    ext4(head)
        .or_else(|| xfs(head))
        .or_else(|| btrfs(head))
        .or_else(|| is_lvm(head).then_some(Content::LvmVolume))
        .or_else(|| other(head))
        .or_else(|| vfat(head))
        .unwrap_or_else(|| {
            if head.iter().all(|byte| *byte == 0) {
                Content::Empty
            } else {
                Content::Unknown
            }
        })
}

fn ext4(head: &[u8]) -> Option<Content> {
    has(head, 1024 + 56, b"\x53\xef").then(|| Content::FileSystem {
        kind: FileSystem::Ext4,
        uuid: uuid(head, 1024 + 104),
        label: text(head, 1024 + 120, 16),
    })
}

fn xfs(head: &[u8]) -> Option<Content> {
    has(head, 0, b"XFSB").then(|| Content::FileSystem {
        kind: FileSystem::Xfs,
        uuid: uuid(head, 32),
        label: text(head, 108, 12),
    })
}

fn btrfs(head: &[u8]) -> Option<Content> {
    const SUPERBLOCK: usize = 0x1_0000;
    has(head, SUPERBLOCK + 0x40, b"_BHRfS_M").then(|| Content::FileSystem {
        kind: FileSystem::Btrfs,
        uuid: uuid(head, SUPERBLOCK + 0x20),
        label: text(head, SUPERBLOCK + 0x12b, 256),
    })
}

/// FAT has no magic but for a text that its specification calls informational.
fn vfat(head: &[u8]) -> Option<Content> {
    let (serial, label) = if has(head, 82, b"FAT32   ") {
        (67, 71)
    } else if has(head, 54, b"FAT16   ") || has(head, 54, b"FAT12   ") {
        (39, 43)
    } else {
        return None;
    };
    let serial: &[u8; 4] = head.get(serial..)?.first_chunk()?;
    let serial = u32::from_le_bytes(*serial);
    Some(Content::FileSystem {
        kind: FileSystem::Vfat,
        uuid: Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff)),
        label: text(head, label, 11).filter(|label| label != "NO NAME"),
    })
}

fn other(head: &[u8]) -> Option<Content> {
    let found = OTHERS.iter().find(|(at, magic, _)| has(head, *at, magic));
    found.map(|(_, _, what)| Content::Other(what))
}

/// Whether one of the first four sectors is LVM's label (lib/label/label.h of LVM2).
fn is_lvm(head: &[u8]) -> bool {
    (0..4).any(|sector| {
        let at = sector * 512;
        has(head, at, b"LABELONE") && has(head, at + 24, b"LVM2 001")
    })
}

fn has(head: &[u8], at: usize, magic: &[u8]) -> bool {
    head.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

fn uuid(head: &[u8], at: usize) -> Option<String> {
    let bytes = head.get(at..at + 16)?;
    if bytes.iter().all(|byte| *byte == 0) {
        return None;
    }
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Some(text)
}

/// A padded text; `None` when it is empty.
fn text(head: &[u8], at: usize, len: usize) -> Option<String> {
    let bytes = head.get(at..at + len)?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(len);
    let text = String::from_utf8_lossy(bytes.get(..end)?);
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD_LEN];
        for (at, bytes) in parts {
            head[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    #[test]
    fn file_systems_say_their_names() {
        let id: Vec<u8> = (1..=16).collect();
        let ext4 = with(&[(1080, b"\x53\xef"), (1128, &id), (1144, b"root\0garbage")]);
        let expected = Content::FileSystem {
            kind: FileSystem::Ext4,
            uuid: Some("01020304-0506-0708-090a-0b0c0d0e0f10".to_owned()),
            label: Some("root".to_owned()),
        };
        assert_eq!(identify(&ext4), expected);
        assert_eq!(identify(&ext4).to_string(), "ext4, label \"root\"");
        let esp = with(&[
            (82, b"FAT32   "),
            (67, &[0xef, 0xbe, 0xad, 0xde]),
            (71, b"NO NAME    "),
        ]);
        let expected = Content::FileSystem {
            kind: FileSystem::Vfat,
            uuid: Some("DEAD-BEEF".to_owned()),
            label: None,
        };
        assert_eq!(identify(&esp), expected);
    }

    #[test]
    fn what_cannot_be_booted_is_named() {
        let lvm = with(&[(512, b"LABELONE"), (536, b"LVM2 001")]);
        assert_eq!(identify(&lvm), Content::LvmVolume);
        let luks = with(&[(0, b"LUKS\xba\xbe")]);
        assert_eq!(identify(&luks).to_string(), "encrypted with LUKS");
        assert_eq!(identify(&with(&[])), Content::Empty);
        assert_eq!(identify(&with(&[(7, b"x")])), Content::Unknown);
    }

    proptest! {
        #[test]
        fn any_head_of_any_length_is_something(head in prop::collection::vec(any::<u8>(), 0..1200)) {
            let _ = identify(&head).to_string();
        }
    }
}
