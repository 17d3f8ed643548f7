//! A disk as a file in a folder. Who writes to the folder may be the pod itself: no link in it is
//! followed.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

use super::fill::{Content, Fill, Progress, copy};
use super::{DISK_FILE, FOLDER, Found, Origin, Record, StoreError, StoredDisk, failed};

/// The file while it is filled: it gets its name when it is whole.
const FILLING_FILE: &str = "disk.img.filling";
/// What is noted of the file's origin, and what that is called while it is written.
const RECORD_FILE: &str = "disk.img.origin";
const NEW_RECORD_FILE: &str = "disk.img.origin.new";
/// Longest such note that is read, in bytes.
const RECORD_LEN_MAX: u64 = 16 << 10;

/// The fill of a folder that has no disk.
#[derive(Debug)]
pub struct FolderFill {
    folder: OwnedFd,
    origin: Origin,
}

/// Looks for the disk in the folder at `path`.
pub(super) fn open(
    path: &Path,
    read_only: bool,
    origin: Option<Origin>,
) -> Result<Found, StoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(path, flags, Mode::empty());
    let folder = folder.map_err(|errno| failed(FOLDER, "open")(errno.into()))?;
    let access = if read_only {
        OFlags::RDONLY
    } else {
        OFlags::RDWR
    };
    match open_file(&folder, DISK_FILE, access) {
        Ok(file) => Ok(Found::Disk(stored(&folder, path, file, read_only)?)),
        Err(Errno::LOOP) => Err(StoreError::NoFile(path.join(DISK_FILE))),
        Err(Errno::NOENT) if read_only && origin.is_some() => {
            Err(StoreError::ReadOnly { volume: FOLDER })
        }
        Err(Errno::NOENT) => match origin {
            Some(origin) => Ok(Found::Empty(Fill::Folder(FolderFill { folder, origin }))),
            None => Err(StoreError::Empty { volume: FOLDER }),
        },
        Err(errno) => Err(failed(FOLDER, "open the disk in")(errno.into())),
    }
}

fn stored(
    folder: &OwnedFd,
    path: &Path,
    file: File,
    read_only: bool,
) -> Result<StoredDisk, StoreError> {
    let metadata = file
        .metadata()
        .map_err(failed(FOLDER, "look at the disk in"))?;
    if !metadata.is_file() {
        return Err(StoreError::NoFile(PathBuf::from(path).join(DISK_FILE)));
    }
    Ok(StoredDisk {
        file,
        len: metadata.len(),
        read_only,
        record: read_record(folder),
    })
}

/// What is noted; None when nothing is, or nothing that this program wrote.
fn read_record(folder: &OwnedFd) -> Option<Record> {
    let file = open_file(folder, RECORD_FILE, OFlags::RDONLY).ok()?;
    let mut json = Vec::new();
    file.take(RECORD_LEN_MAX).read_to_end(&mut json).ok()?;
    serde_json::from_slice(&json).ok()
}

fn open_file(folder: &OwnedFd, name: &str, flags: OFlags) -> Result<File, Errno> {
    // A pipe in the disk's place must not hold us up.
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    openat(folder, name, flags, Mode::RUSR | Mode::WUSR).map(File::from)
}

/// A file of that name that was not there before.
fn new_file(folder: &OwnedFd, name: &str) -> io::Result<File> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
    Ok(open_file(folder, name, flags)?)
}

impl FolderFill {
    pub(super) fn run(
        self,
        content: &mut dyn Content,
        progress: Progress<'_>,
    ) -> Result<StoredDisk, StoreError> {
        let (len, record) = (content.disk_len(), Record::new(self.origin.clone()));
        let record = record.map_err(failed(FOLDER, "number the disk in"))?;
        let filled = self.write(content, &record, progress);
        match filled {
            Ok(file) => Ok(StoredDisk {
                file,
                len,
                read_only: false,
                record: Some(record),
            }),
            Err(error) => {
                // The next fill removes it as well; now its room is of use.
                let _ = unlinkat(&self.folder, FILLING_FILE, AtFlags::empty());
                Err(failed(FOLDER, "fill")(error))
            }
        }
    }

    fn write(
        &self,
        content: &mut dyn Content,
        record: &Record,
        progress: Progress<'_>,
    ) -> io::Result<File> {
        let file = new_file(&self.folder, FILLING_FILE)?;
        file.set_len(content.disk_len())?;
        copy(content, 0, false, progress, &mut |data, offset| {
            file.write_all_at(data, offset)
        })?;
        file.sync_all()?;
        let mut note = new_file(&self.folder, NEW_RECORD_FILE)?;
        note.write_all(&record.to_json())?;
        note.sync_all()?;
        renameat(&self.folder, NEW_RECORD_FILE, &self.folder, RECORD_FILE)?;
        renameat(&self.folder, FILLING_FILE, &self.folder, DISK_FILE)?;
        rustix::fs::fsync(&self.folder)?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::fill::tests::Bytes;
    use super::*;

    fn origin(modified: i64) -> Origin {
        Origin {
            image: "debian".to_owned(),
            file: "debian.qcow2".to_owned(),
            file_len: 7,
            modified,
        }
    }

    fn fill(path: &Path) -> FolderFill {
        match open(path, false, Some(origin(1))) {
            Ok(Found::Empty(Fill::Folder(fill))) => fill,
            other => panic!("{other:?}"),
        }
    }

    fn disk(path: &Path) -> StoredDisk {
        match open(path, false, Some(origin(2))) {
            Ok(Found::Disk(disk)) => disk,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_empty_folder_is_filled_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut content = Bytes::new((5 << 20) / 2);
        let filled = fill(folder.path())
            .run(&mut content, &mut |_, _| {})
            .unwrap();
        let found = disk(folder.path());
        assert_eq!(found.record, filled.record);
        assert!(found.record.unwrap().origin.differs(&origin(2)));
        let written = std::fs::read(folder.path().join(DISK_FILE)).unwrap();
        assert!(written == content.data);
    }

    #[test]
    fn an_interrupted_fill_is_done_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut content = Bytes::new(3 << 20);
        content.broken_at = 2 << 20;
        let broken = fill(folder.path()).run(&mut content, &mut |_, _| {});
        assert!(matches!(broken, Err(StoreError::Io { .. })), "{broken:?}");
        // As a killed process leaves it.
        std::fs::write(folder.path().join(FILLING_FILE), "half").unwrap();
        content.broken_at = u64::MAX;
        fill(folder.path())
            .run(&mut content, &mut |_, _| {})
            .unwrap();
        assert!(std::fs::read(folder.path().join(DISK_FILE)).unwrap() == content.data);
        assert!(!folder.path().join(FILLING_FILE).exists());
    }

    #[test]
    fn what_holds_data_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(DISK_FILE), "mine").unwrap();
        let found = disk(folder.path());
        assert_eq!((found.len, found.record), (4, None));
    }

    #[test]
    fn links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        symlink("/etc/passwd", folder.path().join(DISK_FILE)).unwrap();
        let refused = open(folder.path(), false, None);
        assert!(matches!(refused, Err(StoreError::NoFile(_))), "{refused:?}");
        std::fs::remove_file(folder.path().join(DISK_FILE)).unwrap();
        let target = folder.path().join("target");
        std::fs::write(&target, "x").unwrap();
        symlink(&target, folder.path().join(FILLING_FILE)).unwrap();
        fill(folder.path())
            .run(&mut Bytes::new(4096), &mut |_, _| {})
            .unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"x");
    }

    #[test]
    fn an_empty_volume_without_an_origin_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = open(folder.path(), false, None);
        assert!(matches!(refused, Err(StoreError::Empty { .. })));
        let refused = open(folder.path(), true, Some(origin(1)));
        assert!(matches!(refused, Err(StoreError::ReadOnly { .. })));
    }
}
