//! The disks of a machine: found, filled if need be, opened.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use podvisor_devices::virtio::block::backend::DiskBackend;
use podvisor_devices::virtio::block::image::{
    self, BackingFiles, CacheMode, ImageError, ImageFormat, ImageOptions, ImageSource,
};
use podvisor_devices::virtio::block::reader::DiskReader;
use thiserror::Error;
use tokio::sync::mpsc::UnboundedSender;

use super::image::ImageDisk;
use super::store::{Content, Fill, Progress, Record, StoreError, StoredDisk};
use crate::guest::pet_disk::{DiskOptions, PetDisk};

/// The boot disk's serial number, unless the pod gives it another one.
pub const BOOT_SERIAL: &str = "boot";
/// containerd's link from a bundle, which lies in memory, to a folder of the task's on its own disk
/// (core/runtime/v2/bundle.go).
const WORK: &str = "work";

/// Why there is no disk.
#[derive(Debug, Error)]
pub enum DisksError {
    /// A volume cannot be used as one.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An image cannot be used as one.
    #[error("{what}")]
    Image {
        /// Which.
        what: String,
        /// What is wrong with it.
        source: ImageError,
    },
    /// The layer that takes the writes cannot be made.
    #[error("cannot make the copy-on-write layer in {folder}")]
    Layer {
        /// Where.
        folder: PathBuf,
        /// What the host said.
        source: std::io::Error,
    },
    /// Nobody waits for it any more.
    #[error("filling the volume was broken off")]
    Cancelled,
}

/// What a machine boots from, before it is opened.
#[derive(Debug)]
pub enum BootDisk {
    /// A volume with a disk on it.
    Volume(StoredDisk),
    /// A volume to be filled from an image's disk.
    Fill(Fill, ImageDisk),
    /// An image's disk, and where what is written to it goes.
    Image(ImageDisk, PathBuf),
}

/// A machine's boot disk and how it is attached.
#[derive(Debug)]
pub struct DiskSet {
    /// The disk; None for a machine that boots from a tree.
    pub boot: Option<(BootDisk, DiskOptions)>,
    /// Further ones, which are volumes.
    pub others: Vec<(StoredDisk, DiskOptions)>,
}

/// The same, opened.
pub struct OpenDisks {
    /// In the order in which the guest finds them.
    pub disks: Vec<PetDisk>,
    /// Tells the boot disk from every other one, also of this machine; None for one of which nothing
    /// is noted.
    pub generation: Option<u128>,
}

/// Where the layer of a container's bundle lies that takes its machine's writes: on a disk, or the guest's
/// writes would take the pod's memory. Who makes bundles otherwise has it in the bundle.
pub fn layer_folder(bundle: &Path) -> PathBuf {
    let work = bundle.join(WORK);
    if work.is_dir() {
        work
    } else {
        bundle.to_owned()
    }
}

impl DiskSet {
    /// Whether opening them takes long.
    pub fn is_to_be_filled(&self) -> bool {
        matches!(&self.boot, Some((BootDisk::Fill(..), _)))
    }

    /// Opens them, after a fill if one is due; `told` gets its progress in percent. Blocks.
    ///
    /// # Errors
    /// [`DisksError`]; `Cancelled` once `cancelled` is set.
    pub fn open(
        self,
        told: &UnboundedSender<u64>,
        cancelled: &AtomicBool,
    ) -> Result<OpenDisks, DisksError> {
        let mut disks = Vec::new();
        let mut generation = None;
        if let Some((boot, options)) = self.boot {
            let backend = match boot {
                BootDisk::Volume(stored) => {
                    generation = stored.record.as_ref().and_then(Record::generation);
                    open_stored(stored, &options)?
                }
                BootDisk::Fill(fill, image) => {
                    let stored = run_fill(fill, image, told, cancelled)?;
                    generation = stored.record.as_ref().and_then(Record::generation);
                    open_stored(stored, &options)?
                }
                BootDisk::Image(image, folder) => {
                    generation = super::store::random().ok();
                    open_image(image, &folder, options.cache.unwrap_or_default())?
                }
            };
            disks.push(PetDisk::new(backend, options));
        }
        for (stored, options) in self.others {
            disks.push(PetDisk::new(open_stored(stored, &options)?, options));
        }
        Ok(OpenDisks { disks, generation })
    }
}

/// What a guest may have written to is never asked for its format.
fn open_stored(
    stored: StoredDisk,
    options: &DiskOptions,
) -> Result<Box<dyn DiskBackend>, DisksError> {
    let image_options = ImageOptions {
        read_only: stored.read_only || options.read_only,
        cache: options.cache_of(&stored.file),
    };
    image::open_part(stored.file, stored.len, image_options).map_err(|source| DisksError::Image {
        what: format!("disk {}", options.serial),
        source,
    })
}

fn source(image: &ImageDisk) -> Result<ImageSource, DisksError> {
    let of_host = |source| DisksError::Image {
        what: format!("the image's /disk/{}", image.name),
        source: ImageError::Host {
            action: "open the image again",
            source,
        },
    };
    let folder = image.folder.try_clone().map_err(of_host)?;
    Ok(ImageSource {
        file: image.file.try_clone().map_err(of_host)?,
        format: ImageFormat::Detect,
        backing: BackingFiles::Folder(std::sync::Arc::new(folder)),
    })
}

fn open_image(
    image: ImageDisk,
    folder: &Path,
    cache: CacheMode,
) -> Result<Box<dyn DiskBackend>, DisksError> {
    let layer = image::layer_file(folder).map_err(|source| DisksError::Layer {
        folder: folder.to_owned(),
        source,
    })?;
    let opened = image::open_copy_on_write(source(&image)?, layer, cache);
    opened.map_err(|source| DisksError::Image {
        what: format!("the image's /disk/{}", image.name),
        source,
    })
}

/// Reads an image's disk as long as somebody waits for it.
struct Reading<'a> {
    disk: DiskReader,
    cancelled: &'a AtomicBool,
}

impl Content for Reading<'_> {
    fn disk_len(&self) -> u64 {
        self.disk.disk_len()
    }

    fn read_at(&mut self, data: &mut [u8], offset: u64) -> std::io::Result<()> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        self.disk.read_at(data, offset)
    }
}

/// Opens an image's disk for reading, to see that it can be.
///
/// # Errors
/// [`DisksError::Image`].
pub fn open_for_reading(image: &ImageDisk) -> Result<DiskReader, DisksError> {
    let options = ImageOptions {
        read_only: true,
        ..ImageOptions::default()
    };
    let opened = image::open(source(image)?, options).map(DiskReader::new);
    opened.map_err(|source| DisksError::Image {
        what: format!("the image's /disk/{}", image.name),
        source,
    })
}

fn run_fill(
    fill: Fill,
    image: ImageDisk,
    told: &UnboundedSender<u64>,
    cancelled: &AtomicBool,
) -> Result<StoredDisk, DisksError> {
    let disk = open_for_reading(&image)?;
    let mut last = 0;
    let mut progress = |done: u64, all: u64| {
        let percent = done.saturating_mul(100) / all.max(1);
        // Tens are enough for a transcript.
        if percent / 10 > last / 10 {
            last = percent;
            let _ = told.send(percent);
        }
    };
    let progress: Progress<'_> = &mut progress;
    let filled = fill.run(&mut Reading { disk, cancelled }, progress);
    match filled {
        Err(_) if cancelled.load(Ordering::Relaxed) => Err(DisksError::Cancelled),
        filled => Ok(filled?),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_layer_lies_where_the_bundle_leads_to() {
        let (bundle, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let work = bundle.path().join("work");
        assert_eq!(layer_folder(bundle.path()), bundle.path());
        symlink("/nowhere/at/all", &work).unwrap();
        assert_eq!(layer_folder(bundle.path()), bundle.path());
        std::fs::remove_file(&work).unwrap();
        symlink(disk.path(), &work).unwrap();
        assert_eq!(layer_folder(bundle.path()), work);
        drop(image::layer_file(&work).unwrap());
        assert_eq!(std::fs::read_dir(disk.path()).unwrap().count(), 0);
    }
}
