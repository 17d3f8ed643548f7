//! Partition tables, as far as the kernel does not tell: their kind, and the partitions' UUIDs
//! (UEFI specification, "GUID Partition Table"; the kernel's block/partitions).

use std::fmt;
use std::io;

/// Length of a sector, and of a GPT's header and entries as far as they are read.
const SECTOR: u64 = 512;
/// Entries of a GPT that are looked at; tools make 128.
const MAX_PARTITIONS: u32 = 1024;
/// Greatest length of an entry that any tool writes.
const MAX_ENTRY_LEN: u32 = 4096;

/// How a disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// GUID partition table: where its entries are, their length and number.
    Gpt {
        /// Sector of the first entry.
        entries: u64,
        /// Length of an entry in bytes.
        entry_len: u32,
        /// How many there are.
        count: u32,
    },
    /// Master boot record with this disk signature.
    Msdos {
        /// The signature.
        signature: u32,
    },
    /// None.
    None,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gpt { .. } => "GPT",
            Self::Msdos { .. } => "MBR partition table",
            Self::None => "no partition table",
        })
    }
}

impl Table {
    /// The table of a disk whose first kilobyte is `head`.
    #[must_use]
    pub fn of(head: &[u8]) -> Self {
        if head.get(512..520) == Some(b"EFI PART") {
            let (entries, count, entry_len) = (
                u64_at(head, 512 + 72),
                u32_at(head, 512 + 80),
                u32_at(head, 512 + 84),
            );
            if let (Some(entries), Some(count), Some(entry_len)) = (entries, count, entry_len) {
                return Self::Gpt {
                    entries,
                    entry_len,
                    count,
                };
            }
        }
        let has_entries = head
            .get(446..510)
            .is_some_and(|entries| entries.chunks(16).any(|entry| entry.get(4) != Some(&0)));
        if head.get(510..512) == Some(&[0x55, 0xaa]) && has_entries && !is_fat(head) {
            let signature = u32_at(head, 440).unwrap_or_default();
            return Self::Msdos { signature };
        }
        Self::None
    }

    /// GRUB's name for the table's kind, in its names of partitions.
    #[must_use]
    pub fn grub_name(&self) -> &'static str {
        match self {
            Self::Gpt { .. } => "gpt",
            Self::Msdos { .. } | Self::None => "msdos",
        }
    }

    /// `PARTUUID` of the partition `number`, counted from 1; `read` reads the disk.
    #[must_use]
    pub fn partition_uuid(
        &self,
        number: u32,
        read: &dyn Fn(u64, usize) -> io::Result<Vec<u8>>,
    ) -> Option<String> {
        match *self {
            Self::Gpt {
                entries,
                entry_len,
                count,
            } => {
                let index = number.checked_sub(1)?;
                if index >= count.min(MAX_PARTITIONS) || !(128..=MAX_ENTRY_LEN).contains(&entry_len)
                {
                    return None;
                }
                let at = u64::from(index) * u64::from(entry_len);
                let at = entries.checked_mul(SECTOR)?.checked_add(at)?;
                let entry = read(at, 128).ok()?;
                guid(entry.get(16..32)?.first_chunk()?)
            }
            Self::Msdos { signature } => Some(format!("{signature:08x}-{number:02x}")),
            Self::None => None,
        }
    }
}

/// A FAT file system's boot sector has the MBR's signature, too, and code where that has entries.
fn is_fat(head: &[u8]) -> bool {
    [54, 82]
        .iter()
        .any(|at| head.get(*at..).is_some_and(|text| text.starts_with(b"FAT")))
}

/// A GUID as text: its first three parts are little-endian.
fn guid(bytes: &[u8; 16]) -> Option<String> {
    let [a, b, c, d, e, f, g, h, rest @ ..] = *bytes;
    let (low, mid) = (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([e, f]));
    let high = u16::from_le_bytes([g, h]);
    let rest = u64::from_be_bytes(rest);
    let (clock, node) = (rest >> 48, rest & 0xffff_ffff_ffff);
    (*bytes != [0; 16]).then(|| format!("{low:08x}-{mid:04x}-{high:04x}-{clock:04x}-{node:012x}"))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gpt() -> Vec<u8> {
        let mut disk = vec![0; 2048];
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[512 + 72] = 2;
        disk[512 + 80] = 4;
        disk[512 + 84] = 128;
        for (at, byte) in (1024 + 128 + 16..).zip(1..=16) {
            disk[at] = byte;
        }
        disk
    }

    fn uuid(disk: &[u8], number: u32) -> Option<String> {
        Table::of(disk).partition_uuid(number, &|at, len| {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let rest = disk.get(at..).unwrap_or_default();
            Ok(rest.get(..len).unwrap_or(rest).to_vec())
        })
    }

    #[test]
    fn partitions_have_the_uuids_that_the_kernel_knows_them_by() {
        let expected = "04030201-0605-0807-090a-0b0c0d0e0f10";
        assert_eq!(uuid(&gpt(), 2).as_deref(), Some(expected));
        assert_eq!(uuid(&gpt(), 1), None);
        assert_eq!(uuid(&gpt(), 9), None);
        let mut mbr = vec![0; 1024];
        mbr[440..444].copy_from_slice(&0x1234_abcd_u32.to_le_bytes());
        mbr[450] = 0x83;
        mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(uuid(&mbr, 1).as_deref(), Some("1234abcd-01"));
        assert_eq!(Table::of(&[0; 1024]).to_string(), "no partition table");
    }

    proptest! {
        #[test]
        fn no_damage_does_harm(at in 512..700_usize, byte: u8, number: u32) {
            let mut disk = gpt();
            disk[at] = byte;
            let _ = uuid(&disk, number);
        }
    }
}
