//! Opens block devices of the host.

use std::fs::{File, OpenOptions, read_to_string};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use nix::sys::stat::makedev;

use super::DiskRequest;

/// Opens the block device of a number. Its name is the kernel's (Documentation/ABI/stable/sysfs-block),
/// never one that somebody chose.
///
/// # Errors
/// When there is no such device, or the host does not let it be opened.
pub(super) fn open(request: &DiskRequest) -> io::Result<File> {
    let DiskRequest {
        major,
        minor,
        read_only,
    } = *request;
    let uevent = read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"))?;
    let name = uevent
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or(io::ErrorKind::NotFound)?;
    let file = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .open(Path::new("/dev").join(name))?;
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() && metadata.rdev() == makedev(major, minor) {
        Ok(file)
    } else {
        let wrong = format!("/dev/{name} is another device");
        Err(io::Error::new(io::ErrorKind::NotFound, wrong))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_without_a_device_is_an_error() {
        let request = DiskRequest {
            major: 4095,
            minor: 1,
            read_only: true,
        };
        assert_eq!(open(&request).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
