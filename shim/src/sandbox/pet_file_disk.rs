//! A ConfigMap, Secret or the like as a small disk that is only read: for machines that mount no
//! shared file system, or that look for a disk by its label. It holds the files of the machine's
//! start; unlike a share it does not follow the kubelet.

use std::io;
use std::path::Path;

use oci_spec::runtime::Spec;
use podvisor_annotations::value::disk::Disk;
use podvisor_proto::agent::v1::VolumeEntry;
use podvisor_seed::disk;
use podvisor_seed::{DiskError, DiskFile, Label};
use thiserror::Error;

use super::error::TaskError;
use super::mirror::{MirrorError, Original, read_volume};
use super::pet_disks::options;
use super::pet_plan::SEED_SERIAL;
use super::pet_volumes::bind_mounts;
use crate::machine::disks::DiskSet;
use crate::machine::seed::in_memory;
use crate::machine::store::StoredDisk;
use crate::pod::volume::is_atomically_written;

/// The link to the folder that has a volume's files (kubernetes, `pkg/volume/util/atomic_writer.go`).
const DATA: &str = "..data";
/// Characters of a FAT file system's label.
const LABEL_LEN_MAX: usize = 11;
/// Bytes of a virtio disk's serial number.
const SERIAL_LEN_MAX: usize = 20;

/// Why a volume is no disk.
#[derive(Debug, Error)]
pub enum FileDiskError {
    /// It is of another kind.
    #[error(
        "the volume there is no ConfigMap, Secret, downward API or projected volume: only the files of \
         those make a disk"
    )]
    Kind,
    /// It cannot be read.
    #[error(transparent)]
    Volume(#[from] MirrorError),
    /// Its files do not make a disk.
    #[error("its files")]
    Files(#[from] DiskError),
    /// The host has no room for it.
    #[error("cannot keep it in memory")]
    Memory(#[source] io::Error),
}

/// Adds the volumes of `spec` that are `annotated` as disks and are none yet, with `queues` unless the pod says how
/// many; yields their places.
///
/// # Errors
/// [`TaskError::FileDisk`], [`TaskError::Invalid`] name the place.
pub fn add<'a>(
    disks: &mut DiskSet,
    annotated: &'a [Disk],
    spec: &Spec,
    boot_path: Option<&str>,
    queues: u16,
) -> Result<Vec<&'a Path>, TaskError> {
    let mut places = Vec::new();
    for disk in annotated {
        let path = disk.path.as_str();
        let mut known = disks.others.iter();
        if disk.path.is_root()
            || boot_path == Some(path)
            || known.any(|(_, options)| options.path == path)
        {
            continue;
        }
        let mut mounts = bind_mounts(spec);
        let mount = mounts.find(|mount| mount.destination() == Path::new(path));
        let source = mount.and_then(|mount| mount.source().as_deref());
        let source = source.ok_or_else(|| {
            let why = format!("podvisor.io/disks: no volume of this machine is at {path}");
            TaskError::Invalid(why)
        })?;
        let mut options = options(Some(disk), &free_serial(path, disks, annotated), queues);
        options.path = path.to_owned();
        options.read_only = true;
        let stored = of_volume(source, &options.serial);
        let stored = stored.map_err(|source| TaskError::FileDisk {
            path: path.to_owned(),
            source,
        })?;
        disks.others.push((stored, options));
        places.push(Path::new(path));
    }
    Ok(places)
}

/// A serial number made of a path, which no other disk has or is given.
fn free_serial(path: &str, disks: &DiskSet, annotated: &[Disk]) -> String {
    let serial = serial_of(path);
    let boot = disks.boot.iter().map(|(_, options)| &options.serial);
    let others = disks.others.iter().map(|(_, options)| &options.serial);
    let mut given = annotated.iter().filter_map(|disk| disk.serial.as_ref());
    let is_taken = serial == SEED_SERIAL
        || boot.chain(others).any(|taken| *taken == serial)
        || given.any(|taken| taken.as_str() == serial);
    if is_taken {
        format!("disk{}", disks.others.len())
    } else {
        serial
    }
}

/// A disk with the files of the volume at `folder`, whose label is made of `name`.
///
/// # Errors
/// [`FileDiskError`].
fn of_volume(folder: &Path, name: &str) -> Result<StoredDisk, FileDiskError> {
    if !is_atomically_written(folder) {
        return Err(FileDiskError::Kind);
    }
    let entries = read_volume(&Original {
        folder: folder.to_owned(),
        owners: None,
    })?;
    let content = disk::image(label_of(name), &files_of(&entries))?;
    let file = in_memory(c"disk", &content).map_err(FileDiskError::Memory)?;
    Ok(StoredDisk {
        file,
        len: content.len() as u64,
        read_only: true,
        record: None,
    })
}

/// The serial number of a disk that is given none: its path's last word.
fn serial_of(path: &str) -> String {
    let word = path.rsplit('/').next().unwrap_or_default();
    let serial: String = word
        .chars()
        .filter(char::is_ascii_graphic)
        .take(SERIAL_LEN_MAX)
        .collect();
    if serial.is_empty() {
        "disk".to_owned()
    } else {
        serial
    }
}

/// The files that a reader of the volume sees, by their paths in it.
fn files_of(entries: &[VolumeEntry]) -> Vec<DiskFile<'_>> {
    let data = entries.iter().find(|entry| entry.path == DATA);
    let data = data.and_then(|link| std::str::from_utf8(&link.data).ok());
    let below = format!("{}/", data.unwrap_or(DATA));
    let files = entries
        .iter()
        .filter(|entry| entry.mode & libc::S_IFMT == libc::S_IFREG);
    files
        .filter_map(|file| {
            let path = file.path.strip_prefix(&below)?;
            Some(DiskFile::new(path, &file.data))
        })
        .collect()
}

fn label_of(name: &str) -> Label {
    let valid = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    let label: String = name
        .chars()
        .map(|c| c.to_ascii_uppercase())
        .map(|c| if valid(c) { c } else { '_' })
        .take(LABEL_LEN_MAX)
        .collect();
    // Only an empty name makes none.
    Label::try_from(label.as_str()).unwrap_or(Label::DISK)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_disk_has_the_files_of_now_and_a_label_of_its_name() {
        let folder = tempfile::tempdir().unwrap();
        for (version, value) in [("..1", "old"), ("..2", "new value")] {
            fs::create_dir_all(folder.path().join(version).join("sub")).unwrap();
            fs::write(folder.path().join(version).join("sub/key"), value).unwrap();
        }
        symlink("..2", folder.path().join("..data")).unwrap();
        symlink("..data/sub", folder.path().join("sub")).unwrap();
        let mut disk = of_volume(folder.path(), "app.conf").unwrap();
        assert!(disk.read_only && disk.len > 0);
        let mut content = Vec::new();
        disk.file.read_to_end(&mut content).unwrap();
        let has = |text: &[u8]| content.windows(text.len()).any(|part| part == text);
        assert!(has(b"APP_CONF   ") && has(b"new value") && !has(b"old"));
    }

    #[test]
    fn a_folder_of_another_kind_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = of_volume(folder.path(), "data");
        assert!(matches!(refused, Err(FileDiskError::Kind)));
    }

    #[test]
    fn names_become_serial_numbers_and_labels() {
        assert_eq!(serial_of("/etc/app config"), "appconfig");
        assert_eq!(serial_of("/"), "disk");
        assert_eq!(serial_of(&format!("/{}", "x".repeat(30))).len(), 20);
        assert_eq!(
            label_of("service-account"),
            Label::try_from("SERVICE-ACC").unwrap()
        );
        assert_eq!(label_of(""), Label::DISK);
    }
}
