//! Disks that the host plugs in and takes away while the guest runs: virtio block devices, known
//! by their serial numbers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What writes here has the kernel look for new functions on all PCI buses
/// (Documentation/ABI/testing/sysfs-bus-pci).
const RESCAN: &str = "/sys/bus/pci/rescan";
/// The kernel's block devices.
const BLOCK: &str = "/sys/block";

/// Why a disk could not be found or let go.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The kernel has none of that serial number.
    #[error("the guest sees no disk {0}")]
    Missing(String),
    /// A file of sysfs could not be read or written.
    #[error("{path}")]
    Sysfs {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Scans for the disk and returns its device number, major and minor.
///
/// # Errors
///
/// [`DiskError`].
pub fn find(serial: &str) -> Result<(u32, u32), DiskError> {
    write(Path::new(RESCAN))?;
    let disk = disk_of(Path::new(BLOCK), serial)?;
    let path = disk.join("dev");
    let text = fs::read_to_string(&path).map_err(failed(&path))?;
    let number = text.trim().split_once(':');
    let number = number.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    number.ok_or_else(|| failed(&path)(io::ErrorKind::InvalidData.into()))
}

/// Takes the disk's function off the bus, as far as the kernel is concerned. One that is not there
/// is no error.
///
/// # Errors
///
/// [`DiskError::Sysfs`].
pub fn release(serial: &str) -> Result<(), DiskError> {
    match disk_of(Path::new(BLOCK), serial) {
        // The disk's parent is its virtio device, whose parent is the function.
        Ok(disk) => write(&disk.join("device/../remove")),
        Err(DiskError::Missing(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The folder of the disk in sysfs. Its driver has bound it before the scan returns.
fn disk_of(block: &Path, serial: &str) -> Result<PathBuf, DiskError> {
    for entry in fs::read_dir(block).map_err(failed(block))? {
        let disk = entry.map_err(failed(block))?.path();
        let found = fs::read_to_string(disk.join("serial"));
        if found.is_ok_and(|found| found.trim() == serial) {
            return Ok(disk);
        }
    }
    Err(DiskError::Missing(serial.to_owned()))
}

fn write(path: &Path) -> Result<(), DiskError> {
    fs::write(path, "1").map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> DiskError + use<> {
    let path = path.to_owned();
    move |source| DiskError::Sysfs { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_known_by_its_serial_number() {
        let block = tempfile::tempdir().unwrap();
        for (name, serial) in [("vda", "volume-1\n"), ("vdb", "volume-12\n")] {
            fs::create_dir(block.path().join(name)).unwrap();
            fs::write(block.path().join(name).join("serial"), serial).unwrap();
        }
        fs::create_dir(block.path().join("loop0")).unwrap();
        let found = disk_of(block.path(), "volume-12").unwrap();
        assert_eq!(found, block.path().join("vdb"));
        let missing = disk_of(block.path(), "volume-2");
        assert!(matches!(missing, Err(DiskError::Missing(_))));
    }
}
