//! The header of an image, checked.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::Qcow2Error;

/// The first four bytes.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Length of the header of version 2, and the least length of that of version 3.
const V2_LEN: u64 = 72;
const V3_BYTES: usize = 104;
const V3_LEN: u64 = V3_BYTES as u64;
/// Where the fields are that a writer changes.
pub const REFCOUNT_TABLE_FIELD: u64 = 48;
const AUTOCLEAR_FIELD: u64 = 88;
/// The longest backing name (QEMU's bound).
const MAX_NAME_LEN: u32 = 1023;
/// The longest table of tables: 256 TiB of clusters of 64 KiB. It is kept in memory.
const MAX_L1_LEN: u64 = 4 << 20;
/// The longest table of blocks of reference counts (QEMU's bound). It is kept in memory.
pub const MAX_REFCOUNT_TABLE_LEN: u64 = 8 << 20;
/// Most header extensions looked at. A header has a handful.
const MAX_EXTENSIONS: usize = 64;

/// Incompatible features by bit.
const FEATURES: [&str; 5] = [
    "dirty",
    "corrupt",
    "external data file",
    "compression type",
    "extended L2 entries",
];
/// Reference counts may be wrong; those that this writer adds are not.
const FEATURE_DIRTY: u64 = 1;
/// Another program found wrong metadata.
const FEATURE_CORRUPT: u64 = 1 << 1;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// What an image lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The file's name, as the image says it.
    pub name: String,
    /// Its format, if the image says it.
    pub format: Option<String>,
}

/// What the header says, where it can be.
#[derive(Clone, Debug)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// What the image lies on.
    pub backing: Option<Backing>,
    /// 9 to 21.
    pub cluster_bits: u32,
    /// The disk's length in bytes.
    pub disk_len: u64,
    /// Where the table of L2 tables lies.
    pub l1_offset: u64,
    /// How many entries it has; enough for the disk.
    pub l1_entries: usize,
    /// Where the table of refcount blocks lies.
    pub refcount_table_offset: u64,
    /// How many clusters it has.
    pub refcount_table_clusters: u32,
    /// A reference count has two to the power of this bits: 0 to 6.
    pub refcount_order: u32,
    snapshots: u32,
    is_corrupt: bool,
    /// Whether its reference counts may be wrong.
    pub is_dirty: bool,
    autoclear: u64,
}

/// Whether a file begins as an image does.
///
/// # Errors
/// It cannot be read.
pub fn is_qcow2(file: &File) -> io::Result<bool> {
    let mut magic = [0; MAGIC.len()];
    match file.read_exact_at(&mut magic, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
        Ok(()) => Ok(magic == MAGIC),
    }
}

/// Numbers of the header; those behind its end are zero.
struct Fields {
    bytes: [u8; V3_BYTES],
}

impl Fields {
    fn u32(&self, at: usize) -> u32 {
        let bytes = self.bytes.get(at..).and_then(<[u8]>::first_chunk);
        bytes.copied().map_or(0, u32::from_be_bytes)
    }

    fn u64(&self, at: usize) -> u64 {
        let bytes = self.bytes.get(at..).and_then(<[u8]>::first_chunk);
        bytes.copied().map_or(0, u64::from_be_bytes)
    }
}

impl Header {
    /// Reads the header of the image in `file`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(file: &File) -> Result<Self, Qcow2Error> {
        let mut fields = Fields {
            bytes: [0; V3_BYTES],
        };
        let read = read_up_to(file, &mut fields.bytes, 0, "header")?;
        if fields.bytes.first_chunk() != Some(&MAGIC) {
            return Err(Qcow2Error::Magic);
        }
        let version = fields.u32(4);
        let least = match version {
            2 => V2_LEN,
            3 => V3_LEN,
            other => return Err(Qcow2Error::Version(other)),
        };
        if (read as u64) < least {
            return Err(Qcow2Error::Truncated("header"));
        }
        let end = usize::try_from(least).unwrap_or(usize::MAX);
        fields.bytes.iter_mut().skip(end).for_each(|byte| *byte = 0);
        let mut header = Self::of(&fields, version)?;
        let header_len = match version {
            2 => V2_LEN,
            _ => u64::from(fields.u32(100)),
        };
        if header_len < least || header_len > header.cluster_len() || header_len % 8 != 0 {
            return Err(wrong("header length", header_len));
        }
        header.backing = header.read_backing(file, &fields, header_len)?;
        Ok(header)
    }

    fn of(fields: &Fields, version: u32) -> Result<Self, Qcow2Error> {
        let incompatible = fields.u64(72);
        check_features(incompatible)?;
        if fields.u32(32) != 0 {
            return Err(Qcow2Error::Encrypted);
        }
        let refcount_order = if version == 2 { 4 } else { fields.u32(96) };
        let header = Self {
            version,
            backing: None,
            cluster_bits: fields.u32(20),
            disk_len: fields.u64(24),
            l1_offset: fields.u64(40),
            l1_entries: usize::try_from(fields.u32(36)).unwrap_or(usize::MAX),
            refcount_table_offset: fields.u64(48),
            refcount_table_clusters: fields.u32(56),
            refcount_order,
            snapshots: fields.u32(60),
            is_corrupt: incompatible & FEATURE_CORRUPT != 0,
            is_dirty: incompatible & FEATURE_DIRTY != 0,
            autoclear: fields.u64(88),
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), Qcow2Error> {
        if !(9..=21).contains(&self.cluster_bits) {
            return Err(wrong("cluster bits", self.cluster_bits.into()));
        }
        if self.refcount_order > 6 {
            return Err(wrong("refcount order", self.refcount_order.into()));
        }
        // A file's offsets are signed.
        if self.disk_len > i64::MAX as u64 {
            return Err(wrong("disk size", self.disk_len));
        }
        let l1_len = (self.l1_entries as u64).saturating_mul(8);
        too_large("L1 table", l1_len, MAX_L1_LEN)?;
        let needed = self
            .disk_len
            .div_ceil(self.cluster_len() * self.entries_per_table());
        if needed > self.l1_entries as u64 {
            return Err(wrong("L1 size", self.l1_entries as u64));
        }
        let len = u64::from(self.refcount_table_clusters) * self.cluster_len();
        too_large("refcount table", len, MAX_REFCOUNT_TABLE_LEN)
    }

    /// Length of a cluster in bytes.
    #[must_use]
    pub fn cluster_len(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of an L2 table or of a cluster of the refcount table.
    #[must_use]
    pub fn entries_per_table(&self) -> u64 {
        self.cluster_len() / 8
    }

    /// Reference counts in a block of them.
    #[must_use]
    pub fn refcounts_per_block(&self) -> u64 {
        (self.cluster_len() * 8) >> self.refcount_order
    }

    /// Why the image must not be written to.
    ///
    /// # Errors
    /// [`Qcow2Error::ReadOnly`].
    pub fn check_writable(&self) -> Result<(), Qcow2Error> {
        match self {
            Self {
                is_corrupt: true, ..
            } => Err(Qcow2Error::ReadOnly("is marked as corrupt")),
            Self { snapshots: 1.., .. } => Err(Qcow2Error::ReadOnly("has internal snapshots")),
            _ => Ok(()),
        }
    }

    /// Takes back in the file what its extensions say about data that a writer changes without
    /// knowing them.
    ///
    /// # Errors
    /// The file cannot be written to.
    pub fn clear_autoclear(&self, file: &File) -> io::Result<()> {
        match self.autoclear {
            0 => Ok(()),
            _ => file.write_all_at(&[0; 8], AUTOCLEAR_FIELD),
        }
    }

    fn read_backing(
        &self,
        file: &File,
        fields: &Fields,
        header_len: u64,
    ) -> Result<Option<Backing>, Qcow2Error> {
        let (offset, len) = (fields.u64(8), fields.u32(16));
        if offset == 0 {
            return Ok(None);
        }
        if !(1..=MAX_NAME_LEN).contains(&len) {
            return Err(wrong("backing file name length", len.into()));
        }
        let is_inside = offset >= header_len
            && offset
                .checked_add(len.into())
                .is_some_and(|end| end <= self.cluster_len());
        if !is_inside {
            return Err(wrong("backing file name offset", offset));
        }
        let name = read_text(file, offset, len, "backing file name")?;
        let format = find_format(file, header_len, offset)?;
        Ok(Some(Backing { name, format }))
    }
}

/// The format of the backing file, from the extensions between the header and its name.
fn find_format(file: &File, start: u64, end: u64) -> Result<Option<String>, Qcow2Error> {
    let mut at = start;
    for _ in 0..MAX_EXTENSIONS {
        let mut head = [0; 8];
        if at.saturating_add(8) > end {
            return Ok(None);
        }
        if read_up_to(file, &mut head, at, "header extensions")? < head.len() {
            return Err(Qcow2Error::Truncated("header extensions"));
        }
        let [k0, k1, k2, k3, l0, l1, l2, l3] = head;
        let len = u32::from_be_bytes([l0, l1, l2, l3]);
        at += 8;
        if at.saturating_add(len.into()) > end {
            return Err(wrong("header extension length", len.into()));
        }
        match u32::from_be_bytes([k0, k1, k2, k3]) {
            EXTENSION_END => return Ok(None),
            EXTENSION_BACKING_FORMAT if len <= MAX_NAME_LEN => {
                return read_text(file, at, len, "backing file format").map(Some);
            }
            _ => at += u64::from(len).next_multiple_of(8),
        }
    }
    Ok(None)
}

fn read_text(file: &File, offset: u64, len: u32, part: &'static str) -> Result<String, Qcow2Error> {
    let mut bytes = vec![0; usize::try_from(len.min(MAX_NAME_LEN)).unwrap_or(0)];
    if read_up_to(file, &mut bytes, offset, part)? < bytes.len() {
        return Err(Qcow2Error::Truncated(part));
    }
    let text = String::from_utf8(bytes).map_err(|_| Qcow2Error::BackingName)?;
    match text.contains('\0') {
        true => Err(Qcow2Error::BackingName),
        false => Ok(text),
    }
}

/// Reads as much as there is and returns how much.
pub(super) fn read_up_to(
    file: &File,
    bytes: &mut [u8],
    offset: u64,
    part: &'static str,
) -> Result<usize, Qcow2Error> {
    let mut done = 0;
    while let Some(rest @ [_, ..]) = bytes.get_mut(done..) {
        match file.read_at(rest, offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(len) => done += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(Qcow2Error::Read { part, source }),
        }
    }
    Ok(done)
}

fn check_features(incompatible: u64) -> Result<(), Qcow2Error> {
    let unknown = incompatible & !(FEATURE_DIRTY | FEATURE_CORRUPT);
    if unknown == 0 {
        return Ok(());
    }
    let bit = unknown.trailing_zeros();
    let name = usize::try_from(bit).ok().and_then(|bit| FEATURES.get(bit));
    let name = name.map_or_else(|| format!("number {bit}"), |name| format!("'{name}'"));
    Err(Qcow2Error::Feature(name))
}

fn wrong(field: &'static str, value: u64) -> Qcow2Error {
    Qcow2Error::Field { field, value }
}

fn too_large(what: &'static str, len: u64, max: u64) -> Result<(), Qcow2Error> {
    match len > max {
        true => Err(Qcow2Error::TooLarge { what, len, max }),
        false => Ok(()),
    }
}
