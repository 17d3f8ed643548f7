//! A disk made of files: a FAT file system without partitions, as large as its content needs. FAT is
//! what every distribution's kernel reads and what cloud-init looks for. It keeps no owners and no
//! modes; those are options of its mount.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Cursor, Write};

use fatfs::{Date, DateTime, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};
use thiserror::Error;

/// All files together. An agent has 5 MiB, a ConfigMap or Secret at most 1 MiB; the disk is memory
/// of the pod.
pub const CONTENT_LEN_MAX: usize = 64 << 20;
/// Files on a disk; each is found by a walk through its folder.
pub const FILES_MAX: usize = 1024;
/// The longest name that FAT has, in UTF-16 units.
const NAME_LEN_MAX: usize = 255;

const SECTOR_LEN: usize = 512;
const CLUSTER_LEN: usize = 2048;
const ENTRY_LEN: usize = 32;
/// UTF-16 units of a name in one directory entry.
const NAME_PIECE_LEN: usize = 13;
/// With this many clusters a file system is FAT16, with fewer it is FAT12. Close to it, the two
/// disagree about the size of their tables.
const FAT16_CLUSTERS: usize = 4085;
const UNDECIDED_CLUSTERS: std::ops::Range<usize> = FAT16_CLUSTERS - 85..FAT16_CLUSTERS + 115;
/// A disk is a multiple of this, so that it can be mapped.
const DISK_GRANULE: usize = 4096;

const _: () = assert!(
    CONTENT_LEN_MAX / CLUSTER_LEN + 2 * FILES_MAX < 65525,
    "FAT16's bound"
);

/// A file of a disk.
#[derive(Clone, Copy, Debug)]
pub struct DiskFile<'a> {
    /// Its path: names with `/` between them.
    pub path: &'a str,
    /// Its content.
    pub content: &'a [u8],
}

impl<'a> DiskFile<'a> {
    /// A file.
    pub fn new(path: &'a str, content: &'a [u8]) -> Self {
        Self { path, content }
    }
}

/// A disk's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label([u8; 11]);

/// Not a label.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is no label: 1 to 11 of A-Z, 0-9, - and _")]
pub struct LabelError(String);

impl Label {
    /// That of a disk without a name.
    pub const DISK: Self = Self(*b"DISK       ");
    /// The seed's own.
    pub(crate) const SEED: Self = Self(*b"CIDATA     ");
}

impl TryFrom<&str> for Label {
    type Error = LabelError;

    fn try_from(label: &str) -> Result<Self, LabelError> {
        let valid = |byte: u8| {
            byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
        };
        if label.is_empty() || label.len() > 11 || !label.bytes().all(valid) {
            return Err(LabelError(label.to_owned()));
        }
        let mut padded = [b' '; 11];
        for (to, from) in padded.iter_mut().zip(label.bytes()) {
            *to = from;
        }
        Ok(Self(padded))
    }
}

/// Files that do not make a disk.
#[derive(Debug, Error)]
pub enum DiskError {
    /// FAT cannot have this name.
    #[error("{path:?}: {reason}")]
    Name {
        /// The file.
        path: String,
        /// Why not.
        reason: &'static str,
    },
    /// Names differ in the case of their letters only, which FAT does not tell apart.
    #[error("{0:?} is there twice: a disk does not tell upper from lower case")]
    Twice(String),
    /// Too many bytes.
    #[error("its files have {len} bytes together; the limit is {CONTENT_LEN_MAX}")]
    TooLarge {
        /// How many.
        len: usize,
    },
    /// Too many files.
    #[error("it has {0} files; the limit is {FILES_MAX}")]
    TooMany(usize),
    /// The file system cannot be made.
    #[error("its file system cannot be made")]
    FileSystem(#[from] io::Error),
}

/// The bytes of a disk with these files.
///
/// # Errors
/// [`DiskError`].
pub fn image(label: Label, files: &[DiskFile<'_>]) -> Result<Vec<u8>, DiskError> {
    let folders = check(files)?;
    let layout = Layout::of(files, &folders);
    let mut bytes = vec![0; layout.disk_len()];
    let options = FormatVolumeOptions::new()
        .bytes_per_cluster(u32::try_from(CLUSTER_LEN).unwrap_or_default())
        .max_root_dir_entries(layout.root_entries)
        .volume_id(volume_id(label))
        .volume_label(label.0);
    fatfs::format_volume(Cursor::new(bytes.as_mut_slice()), options)?;
    let options = FsOptions::new()
        .update_accessed_date(false)
        .time_provider(&FirstDay);
    let volume = FileSystem::new(Cursor::new(bytes.as_mut_slice()), options)?;
    for folder in folders.keys().filter(|folder| !folder.is_empty()) {
        volume.root_dir().create_dir(folder)?;
    }
    for file in files {
        let mut written = volume.root_dir().create_file(file.path)?;
        written.write_all(file.content)?;
        written.flush()?;
    }
    volume.unmount()?;
    Ok(bytes)
}

/// Checks all names; yields the folders with the directory entries that each has, parents first.
fn check<'a>(files: &[DiskFile<'a>]) -> Result<BTreeMap<&'a str, usize>, DiskError> {
    let len = files
        .iter()
        .fold(0, |sum: usize, file| sum.saturating_add(file.content.len()));
    if len > CONTENT_LEN_MAX {
        return Err(DiskError::TooLarge { len });
    }
    // The root has its label for an entry.
    let mut folders = BTreeMap::from([("", 1)]);
    let mut seen = BTreeSet::new();
    for file in files {
        for (end, _) in file.path.match_indices('/') {
            let folder = file.path.get(..end).unwrap_or_default();
            if end == 0 || !folders.contains_key(folder) {
                add_entry(&mut folders, folder, file.path)?;
                is_new(&mut seen, folder)?;
                // `.` and `..`.
                folders.insert(folder, 2);
            }
        }
        add_entry(&mut folders, file.path, file.path)?;
        is_new(&mut seen, file.path)?;
    }
    match seen.len() {
        count if count > FILES_MAX => Err(DiskError::TooMany(count)),
        _ => Ok(folders),
    }
}

fn is_new(seen: &mut BTreeSet<String>, path: &str) -> Result<(), DiskError> {
    if seen.insert(path.to_lowercase()) {
        Ok(())
    } else {
        Err(DiskError::Twice(path.to_owned()))
    }
}

/// Counts the directory entries of the last name of `path` in its folder; `file` names it in errors.
fn add_entry<'a>(
    folders: &mut BTreeMap<&'a str, usize>,
    path: &'a str,
    file: &str,
) -> Result<(), DiskError> {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let wrong = |reason| DiskError::Name {
        path: file.to_owned(),
        reason,
    };
    let units = name.encode_utf16().count();
    if units == 0 || units > NAME_LEN_MAX {
        return Err(wrong("a name has 1 to 255 characters"));
    }
    if name.ends_with(['.', ' ']) || name.starts_with(' ') {
        return Err(wrong("a name on a disk cannot end with a dot or a blank"));
    }
    let valid = |c: char| {
        c.is_ascii_alphanumeric() || c > '\u{9f}' || "$%'-_@~`!(){}.+,;=[]^#& ".contains(c)
    };
    if !name.chars().all(valid) {
        return Err(wrong("a character that no name on a disk can have"));
    }
    *folders.entry(folder).or_default() += 1 + units.div_ceil(NAME_PIECE_LEN);
    Ok(())
}

/// The sizes of a file system.
struct Layout {
    clusters: usize,
    root_entries: u16,
}

impl Layout {
    fn of(files: &[DiskFile<'_>], folders: &BTreeMap<&str, usize>) -> Self {
        let contents = files.iter().map(|file| file.content.len());
        let tables = folders.iter().filter(|(name, _)| !name.is_empty());
        let tables = tables.map(|(_, entries)| entries * ENTRY_LEN);
        let clusters: usize = contents
            .chain(tables)
            .map(|len| len.div_ceil(CLUSTER_LEN))
            .sum();
        let clusters = if UNDECIDED_CLUSTERS.contains(&clusters) {
            UNDECIDED_CLUSTERS.end
        } else {
            clusters.max(1)
        };
        let root_entries = folders.get("").copied().unwrap_or_default();
        let root_entries = root_entries.next_multiple_of(SECTOR_LEN / ENTRY_LEN);
        Self {
            clusters,
            root_entries: u16::try_from(root_entries).unwrap_or(u16::MAX),
        }
    }

    fn disk_len(&self) -> usize {
        // Two tables with at most two bytes a cluster, and the boot sector.
        let table = ((self.clusters + 2) * 2).next_multiple_of(SECTOR_LEN);
        let root = usize::from(self.root_entries) * ENTRY_LEN;
        let len = SECTOR_LEN + 2 * table + root + self.clusters * CLUSTER_LEN;
        // The formatter refuses a disk with less than 8 sectors of tables and data.
        (len + 8 * SECTOR_LEN).next_multiple_of(DISK_GRANULE)
    }
}

/// All files are of FAT's first day: the same disk for the same content.
#[derive(Debug)]
struct FirstDay;

impl TimeProvider for FirstDay {
    fn get_current_date(&self) -> Date {
        Date {
            year: 1980,
            month: 1,
            day: 1,
        }
    }

    fn get_current_date_time(&self) -> DateTime {
        let time = Time {
            hour: 0,
            min: 0,
            sec: 0,
            millis: 0,
        };
        DateTime {
            date: self.get_current_date(),
            time,
        }
    }
}

/// A number of its own for every label, the same each time (FNV-1a).
fn volume_id(label: Label) -> u32 {
    label.0.iter().fold(0x811c_9dc5, |hash: u32, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
pub(crate) mod tests;
