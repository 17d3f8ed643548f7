//! The mounts of this process's namespace (proc(5), `/proc/self/mountinfo`).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use crate::pod::volume::part_of;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TableEntry {
    /// Its number.
    pub id: u64,
    /// The device of its file system, `major:minor`.
    pub device: String,
    /// Which folder of the file system it shows.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// The file system's type.
    pub kind: String,
}

/// All mounts, in the order they were made.
#[derive(Clone, Debug, Default)]
pub(super) struct MountTable(Vec<TableEntry>);

impl MountTable {
    /// The mounts of now.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn read() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read("/proc/self/mountinfo")?))
    }

    fn parse(table: &[u8]) -> Self {
        let lines = table.split(|byte| *byte == b'\n');
        Self(lines.filter_map(TableEntry::parse).collect())
    }

    /// The mount of a number.
    pub fn get(&self, id: u64) -> Option<&TableEntry> {
        self.0.iter().find(|entry| entry.id == id)
    }

    /// The mounts of a device.
    pub fn of_device<'a>(&'a self, device: &'a str) -> impl Iterator<Item = &'a TableEntry> {
        self.0.iter().filter(move |entry| entry.device == device)
    }

    /// Whether something is mounted below `folder`.
    pub fn has_below(&self, folder: &Path) -> bool {
        let below = |point: &Path| point.starts_with(folder) && point != folder;
        self.0.iter().any(|entry| below(&entry.point))
    }
}

impl TableEntry {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let text = |field: &[u8]| Some(std::str::from_utf8(field).ok()?.to_owned());
        let id = text(fields.next()?)?.parse().ok()?;
        let device = text(fields.nth(1)?)?;
        let root = path(fields.next()?);
        let point = path(fields.next()?);
        // Options and optional fields end with a dash.
        let kind = text(fields.skip_while(|field| *field != b"-").nth(1)?)?;
        Some(Self {
            id,
            device,
            root,
            point,
            kind,
        })
    }

    /// Where this mount shows `path` of its file system, if it does.
    pub fn shown_at(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.root).ok()?;
        Some(part_of(&self.point, below))
    }

    /// Which path of the file system is shown at `path`.
    pub fn path_inside(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.point).ok()?;
        Some(part_of(&self.root, below))
    }
}

/// A path whose blanks and backslashes are written as three octal digits.
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| byte == b'\\');
        let octal = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:31 / /var/pods/a\\040b rw,nosuid shared:7 master:2 - tmpfs tmpfs rw,size=1024k
41 22 0:31 /sub /mnt rw - tmpfs tmpfs rw
";

    #[test]
    fn escaped_paths_and_optional_fields_are_understood() {
        let table = MountTable::parse(TABLE.as_bytes());
        let tmpfs = table.get(40).unwrap();
        assert_eq!(tmpfs.point, Path::new("/var/pods/a b"));
        assert_eq!(
            (tmpfs.kind.as_str(), tmpfs.device.as_str()),
            ("tmpfs", "0:31")
        );
        assert_eq!(table.of_device("0:31").count(), 2);
    }

    #[test]
    fn a_mount_of_a_part_translates_paths() {
        let table = MountTable::parse(TABLE.as_bytes());
        let part = table.get(41).unwrap();
        let shown = part.shown_at(Path::new("/sub/file")).unwrap();
        assert_eq!(shown, Path::new("/mnt/file"));
        assert_eq!(part.shown_at(Path::new("/other")), None);
        let inside = part.path_inside(Path::new("/mnt")).unwrap();
        assert_eq!(inside, Path::new("/sub"));
    }

    #[test]
    fn mounts_below_a_folder_are_found() {
        let table = MountTable::parse(TABLE.as_bytes());
        assert!(table.has_below(Path::new("/var/pods")));
        assert!(!table.has_below(Path::new("/mnt")));
    }
}
