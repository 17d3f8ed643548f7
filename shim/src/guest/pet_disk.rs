//! The disks of a machine that boots its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileTypeExt as _;

use podvisor_devices::event_loop::EventLoop;
use podvisor_devices::virtio::block::backend::DiskBackend;
use podvisor_devices::virtio::block::image::{self, CacheMode, ImageError, ImageOptions};
use podvisor_devices::virtio::{Block, BlockConfig, BlockSerial, FailureListener, RateLimits};
use podvisor_vmm::{DeviceSlot, PciSlot, ThreadKind, confine};

use super::disk::DiskError;

/// How a disk is attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskOptions {
    /// Where the container would see it; empty for one that no volume is.
    pub path: String,
    /// What the guest reads as its serial number, at most 20 bytes; unique in the machine.
    pub serial: String,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// Its queues.
    pub queues: u16,
    /// Its place on the bus.
    pub pci: Option<u8>,
    /// The thread that serves it together with other disks of that number; one of its own without.
    pub thread: Option<u8>,
    /// How writes reach the host's file; None for what suits the file.
    pub cache: Option<CacheMode>,
    /// Requests a second at most.
    pub iops: Option<u64>,
    /// Bytes a second at most.
    pub bps: Option<u64>,
}

impl DiskOptions {
    /// How writes reach a volume: past the host's page cache where it is a device and nothing else was asked
    /// for, unless the host cannot do that with it.
    pub fn cache_of(&self, file: &File) -> CacheMode {
        let is_device = |file: &File| {
            let metadata = file.metadata();
            metadata.is_ok_and(|metadata| metadata.file_type().is_block_device())
        };
        self.cache.unwrap_or_else(|| {
            if is_device(file) && image::has_direct_io(file) {
                CacheMode::None
            } else {
                CacheMode::Writeback
            }
        })
    }
}

/// A disk.
pub struct PetDisk {
    /// Its data.
    pub backend: Box<dyn DiskBackend>,
    /// How it is attached.
    pub options: DiskOptions,
    listener: Option<FailureListener>,
}

impl PetDisk {
    /// A disk with the data of `backend`.
    pub fn new(backend: Box<dyn DiskBackend>, options: DiskOptions) -> Self {
        Self {
            backend,
            options,
            listener: None,
        }
    }

    /// Has what the host cannot do for the disk told in a line, which `tell` must not wait with.
    pub fn on_failure(&mut self, tell: impl Fn(String) + Send + Sync + 'static) {
        let DiskOptions { path, serial, .. } = &self.options;
        let name = if path.is_empty() { serial } else { path }.clone();
        self.listener = Some(Box::new(move |error| tell(format!("disk {name}: {error}"))));
    }

    /// A disk whose data are a file's.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn of_file(file: File, len: u64, options: DiskOptions) -> Result<Self, ImageError> {
        let image = ImageOptions {
            read_only: options.read_only,
            cache: options.cache_of(&file),
        };
        Ok(Self::new(image::open_part(file, len, image)?, options))
    }
}

/// The threads that serve several disks each, by their numbers.
#[derive(Default)]
pub(super) struct DiskThreads(BTreeMap<u8, EventLoop>);

impl DiskThreads {
    /// The device of a disk. Its thread inherits the caller's system call filter: there must be none.
    ///
    /// # Errors
    /// [`DiskError::Make`].
    pub fn slot(&mut self, disk: PetDisk) -> Result<DeviceSlot, DiskError> {
        let PetDisk {
            backend,
            options,
            listener,
        } = disk;
        let name = options.serial.clone();
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| DiskError::Make {
            name: name.clone(),
            source,
        };
        let serial = BlockSerial::try_from(name.as_str()).map_err(|e| failed(e.into()))?;
        let config = BlockConfig {
            read_only: options.read_only,
            serial,
            queues: options.queues,
            limits: RateLimits {
                iops: options.iops.and_then(NonZeroU64::new),
                bytes_per_second: options.bps.and_then(NonZeroU64::new),
            },
        };
        let thread = self.thread(&options).map_err(|e| failed(e.into()))?;
        let mut device = Block::new(config, backend, thread).map_err(|e| failed(e.into()))?;
        if let Some(listener) = listener {
            device.on_failure(listener);
        }
        let address = options.pci.map(|slot| PciSlot::try_from(u32::from(slot)));
        Ok(DeviceSlot {
            name: name.clone(),
            address: address.transpose().map_err(|e| failed(e.into()))?,
            device: Box::new(device),
        })
    }

    fn thread(&mut self, options: &DiskOptions) -> io::Result<EventLoop> {
        let Some(number) = options.thread else {
            return spawn(&options.serial);
        };
        if let Some(thread) = self.0.get(&number) {
            return Ok(thread.clone());
        }
        let thread = spawn(&format!("disks{number}"))?;
        self.0.insert(number, thread.clone());
        Ok(thread)
    }
}

/// A thread's name has 15 bytes; who looks at one finds the disk by those.
fn spawn(name: &str) -> io::Result<EventLoop> {
    let name: String = name.chars().take(15).collect();
    EventLoop::spawn(&name, Box::new(confine::on_start(ThreadKind::Disk)))
}
