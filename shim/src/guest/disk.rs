//! Disks that come and go while a guest runs.

use std::fs::File;

use podvisor_devices::event_loop::EventLoop;
use podvisor_devices::virtio::block::image::{
    self, BackingFiles, CacheMode, ImageFormat, ImageOptions, ImageSource,
};
use podvisor_devices::virtio::{Block, BlockConfig, BlockSerial};
use podvisor_vmm::{DeviceSlot, PciError, ThreadKind, confine};
use thiserror::Error;

/// A disk to be.
pub struct Disk {
    /// Its name, at most 15 bytes: the guest reads it as the serial number, and the disk's thread
    /// has it.
    pub name: String,
    /// Its data.
    pub file: File,
    /// Whether it refuses writes.
    pub read_only: bool,
}

/// Why a disk cannot be given to a guest.
#[derive(Debug, Error)]
pub enum DiskError {
    /// Its device cannot be made.
    #[error("cannot make disk {name}")]
    Make {
        /// Its name.
        name: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It cannot be plugged in.
    #[error("cannot plug disk {name}")]
    Plug {
        /// Its name.
        name: String,
        /// Why.
        source: PciError,
    },
}

/// The device of a disk, served by a thread of its own. That thread inherits the caller's system
/// call filter: there must be none.
///
/// # Errors
/// [`DiskError::Make`].
pub(super) fn slot(disk: Disk) -> Result<DeviceSlot, DiskError> {
    let Disk {
        name,
        file,
        read_only,
    } = disk;
    let config = BlockConfig {
        read_only,
        serial: BlockSerial::try_from(name.as_str()).map_err(failed(&name))?,
        ..BlockConfig::default()
    };
    // The first bytes of a volume are its user's, who could write the header of any format.
    let source = ImageSource {
        file,
        format: ImageFormat::Raw,
        backing: BackingFiles::Refused,
    };
    let options = ImageOptions {
        read_only,
        cache: CacheMode::Writeback,
    };
    let on_start = Box::new(confine::on_start(ThreadKind::Disk));
    let thread = EventLoop::spawn(&name, on_start).map_err(failed(&name))?;
    let backend = image::open(source, options).map_err(failed(&name))?;
    let device = Block::new(config, backend, thread).map_err(failed(&name))?;
    Ok(DeviceSlot {
        name,
        address: None,
        device: Box::new(device),
    })
}

fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    name: &str,
) -> impl FnOnce(E) -> DiskError {
    let name = name.to_owned();
    move |source| DiskError::Make {
        name,
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_made_of_a_file() {
        let disk = Disk {
            name: "volume-1".to_owned(),
            file: tempfile::tempfile().unwrap(),
            read_only: true,
        };
        assert_eq!(slot(disk).unwrap().name, "volume-1");
    }

    #[test]
    fn a_name_that_no_serial_number_holds_is_refused() {
        let disk = Disk {
            name: "a name of more than 20 bytes".to_owned(),
            file: tempfile::tempfile().unwrap(),
            read_only: true,
        };
        assert!(matches!(slot(disk), Err(DiskError::Make { .. })));
    }
}
