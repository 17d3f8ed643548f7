//! Disk images: what a disk's data lie in, opened.
//!
//! **Formats.** Only an image that nobody has written to may be asked for its format
//! ([`ImageFormat::Detect`]): a disk as it came with an OCI image. The first bytes of a raw disk
//! belong to its guest, which could write a qcow2 header there, and with it name a file of the host as
//! its backing file. Whoever opens a disk that a guest may have written to, a volume or a block
//! device, says [`ImageFormat::Raw`] or [`ImageFormat::Qcow2`]: always, and the same each time.

mod backing;

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{Mode, OFlags, fstat};
use thiserror::Error;

pub use self::backing::{BackingError, BackingFiles};
use super::backend::DiskBackend;
use super::layers::{CowLayer, Layer, LayeredDisk, RawLayer, Stack, TooLong, Top};
#[cfg(any(test, feature = "testing"))]
pub use super::qcow2::testing;
use super::qcow2::{Header, Qcow2Error, Qcow2Layer, Qcow2ReadOnly, is_qcow2};
use super::raw::{RawDisk, len_of};
pub use super::transfer::CacheMode;
use super::transfer::{self, DiskFile, FileId, Transfers};
use super::writethrough::WritethroughDisk;

/// Most images under one another.
const MAX_CHAIN: usize = 8;

/// How an image's file is to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// Byte for byte.
    Raw,
    /// qcow2, version 2 or 3.
    Qcow2,
    /// By its first bytes; see this module for when that is safe.
    Detect,
}

/// An image to be opened.
pub struct ImageSource {
    /// Its file or block device, open for reading, and for writing unless it is only read.
    pub file: File,
    /// Its format.
    pub format: ImageFormat,
    /// Where the files are that it may lie on.
    pub backing: BackingFiles,
}

/// How a disk uses its files.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImageOptions {
    /// Nothing is written, not even to an image's metadata.
    pub read_only: bool,
    /// How the host caches them.
    pub cache: CacheMode,
}

/// Why an image cannot be opened.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The host does not do what it is asked for.
    #[error("cannot {action}")]
    Host {
        /// What.
        action: &'static str,
        /// What it says.
        source: io::Error,
    },
    /// Something is wrong with the image.
    #[error("the qcow2 image cannot be used")]
    Qcow2(#[from] Qcow2Error),
    /// Something is wrong with an image that it lies on.
    #[error("the image's backing file '{name}' cannot be used")]
    Backing {
        /// Its name.
        name: String,
        /// What is wrong.
        source: Box<ImageError>,
    },
    /// The image's backing file is not to be had.
    #[error("the image's backing file '{name}' cannot be opened")]
    BackingFile {
        /// Its name.
        name: String,
        /// Why.
        source: BackingError,
    },
    /// An image lies on itself.
    #[error("the image lies on itself")]
    Loop,
    /// There are too many images under one another.
    #[error("there are more than {MAX_CHAIN} images under one another")]
    ChainTooLong,
    /// The disk is too long for a copy-on-write layer.
    #[error(transparent)]
    TooLong(#[from] TooLong),
}

fn host(action: &'static str) -> impl FnOnce(io::Error) -> ImageError {
    move |source| ImageError::Host { action, source }
}

/// Opens an image as a disk.
///
/// # Errors
/// What is wrong with it, or what the host does not do.
pub fn open(
    source: ImageSource,
    options: ImageOptions,
) -> Result<Box<dyn DiskBackend>, ImageError> {
    let disk = open_chain(source, options, Chain::new(options.cache))?;
    Ok(through(disk, options.cache))
}

/// `disk`, whose writes are durable when they are answered where `cache` wants that.
fn through(disk: Box<dyn DiskBackend>, cache: CacheMode) -> Box<dyn DiskBackend> {
    match cache {
        CacheMode::Writethrough => Box::new(WritethroughDisk::new(disk)),
        CacheMode::Writeback | CacheMode::None | CacheMode::Unsafe => disk,
    }
}

/// Opens an image as on a host that forbids `io_uring`: for tests that open many.
///
/// # Errors
/// Those of [`open`].
#[cfg(any(test, feature = "testing"))]
pub fn open_without_ring(
    source: ImageSource,
    options: ImageOptions,
) -> Result<Box<dyn DiskBackend>, ImageError> {
    let chain = Chain {
        open_transfers: transfer::open_plain,
        ..Chain::new(options.cache)
    };
    open_chain(source, options, chain)
}

fn open_chain(
    source: ImageSource,
    options: ImageOptions,
    mut chain: Chain,
) -> Result<Box<dyn DiskBackend>, ImageError> {
    let format = chain.format_of(&source)?;
    if format == ImageFormat::Raw {
        let len = len_of(&source.file).map_err(host("find out the image's length"))?;
        chain.add_file(source.file)?;
        let transfers = chain.transfers()?;
        return Ok(Box::new(RawDisk::new(transfers, len, options.cache)));
    }
    let ImageSource { file, backing, .. } = source;
    let (image, header) = chain.open_qcow2(file)?;
    let top = match options.read_only {
        true => {
            image.check_whole()?;
            Top::ReadOnly(Box::new(image))
        }
        false => Top::Writable(Box::new(Qcow2Layer::new(image)?)),
    };
    let below = chain.open_backing(&header, &backing)?;
    chain.disk(Stack::new(top, below))
}

/// Opens the first `len` bytes of a raw image as a disk.
///
/// # Errors
/// What the host does not do.
pub fn open_part(
    file: File,
    len: u64,
    options: ImageOptions,
) -> Result<Box<dyn DiskBackend>, ImageError> {
    let mut chain = Chain::new(options.cache);
    chain.add_file(file)?;
    let transfers = transfer::open(chain.files).map_err(host("make the disk's queue"))?;
    let disk = RawDisk::new(transfers, len, options.cache);
    Ok(through(Box::new(disk), options.cache))
}

/// Opens an image as a disk whose writes go to `layer`, an empty file of the caller's that is open
/// for reading and writing ([`layer_file`] makes one). The image is only read. What was
/// written is gone with the backend, which outlives a virtio device's reset: flushes and durable
/// writes have nothing to do.
///
/// # Errors
/// What is wrong with the image, or what the host does not do.
pub fn open_copy_on_write(
    source: ImageSource,
    layer: File,
    cache: CacheMode,
) -> Result<Box<dyn DiskBackend>, ImageError> {
    let mut chain = Chain::new(cache);
    let layers = chain.open_layers(source)?;
    let len = layers.first().map_or(0, |layer| layer.len());
    // All of it can be read from now on, and none of it takes room.
    layer
        .set_len(len)
        .map_err(host("set the length of the copy-on-write layer"))?;
    let file = chain.add_file(layer)?;
    let top = Top::Writable(Box::new(CowLayer::new(file, len)?));
    chain.disk(Stack::new(top, layers))
}

/// The name of the file that the image in `file` lies on; None for one that lies on none, or is no qcow2
/// image that can be used.
#[must_use]
pub fn backing_name(file: &File) -> Option<String> {
    Some(Header::read(file).ok()?.backing?.name)
}

/// Whether the host can use `file` with [`CacheMode::None`].
#[must_use]
pub fn has_direct_io(file: &File) -> bool {
    DiskFile::has_direct_io(file)
}

/// A file for [`open_copy_on_write`] in `folder` that has no name: it is gone when it is closed,
/// however this process ends.
///
/// # Errors
/// Those of open(2).
pub fn layer_file(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(folder, flags, mode) {
        Ok(file) => Ok(file.into()),
        // The file system has no files without names.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => named_layer_file(folder),
        Err(error) => Err(error.into()),
    }
}

fn named_layer_file(folder: &Path) -> io::Result<File> {
    let path = folder.join(format!(".layer-{}", std::process::id()));
    let mut options = File::options();
    let file = options
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// The files of a disk, as they are opened one after the other.
struct Chain {
    cache: CacheMode,
    open_transfers: fn(Vec<DiskFile>) -> io::Result<Box<dyn Transfers>>,
    files: Vec<DiskFile>,
    /// Device and inode of each image.
    seen: Vec<(u64, u64)>,
}

impl Chain {
    fn new(cache: CacheMode) -> Self {
        Self {
            cache,
            open_transfers: transfer::open,
            files: Vec::new(),
            seen: Vec::new(),
        }
    }

    fn transfers(self) -> Result<Box<dyn Transfers>, ImageError> {
        (self.open_transfers)(self.files).map_err(host("make the disk's queue"))
    }

    fn disk(self, stack: Stack) -> Result<Box<dyn DiskBackend>, ImageError> {
        let cache = self.cache;
        Ok(Box::new(LayeredDisk::new(self.transfers()?, stack, cache)))
    }

    fn add_file(&mut self, file: File) -> Result<FileId, ImageError> {
        let file = DiskFile::new(file, self.cache).map_err(host("use the disk's cache mode"))?;
        self.files.push(file);
        Ok(FileId(self.files.len() - 1))
    }

    /// The format of an image that is not yet in the chain.
    fn format_of(&mut self, source: &ImageSource) -> Result<ImageFormat, ImageError> {
        let status =
            fstat(&source.file).map_err(|error| host("look at the image")(error.into()))?;
        let this = (status.st_dev, status.st_ino);
        if self.seen.contains(&this) {
            return Err(ImageError::Loop);
        }
        if self.seen.len() == MAX_CHAIN {
            return Err(ImageError::ChainTooLong);
        }
        self.seen.push(this);
        if source.format != ImageFormat::Detect {
            return Ok(source.format);
        }
        match is_qcow2(&source.file).map_err(host("read the image"))? {
            true => Ok(ImageFormat::Qcow2),
            false => Ok(ImageFormat::Raw),
        }
    }

    fn open_qcow2(&mut self, file: File) -> Result<(Qcow2ReadOnly, Header), ImageError> {
        let header = Header::read(&file)?;
        let len = len_of(&file).map_err(host("find out the image's length"))?;
        let copy = file.try_clone().map_err(host("open the image again"))?;
        let id = self.add_file(copy)?;
        let image = Qcow2ReadOnly::new(file, len, id, header.clone())?;
        Ok((image, header))
    }

    /// An image that is only read, and those that it lies on.
    fn open_layers(&mut self, source: ImageSource) -> Result<Vec<Box<dyn Layer>>, ImageError> {
        let format = self.format_of(&source)?;
        let ImageSource { file, backing, .. } = source;
        if format == ImageFormat::Raw {
            let len = len_of(&file).map_err(host("find out the image's length"))?;
            let id = self.add_file(file)?;
            return Ok(vec![Box::new(RawLayer::new(id, len))]);
        }
        let (image, header) = self.open_qcow2(file)?;
        image.check_whole()?;
        let mut layers: Vec<Box<dyn Layer>> = vec![Box::new(image)];
        layers.append(&mut self.open_backing(&header, &backing)?);
        Ok(layers)
    }

    /// What an image with this header lies on.
    fn open_backing(
        &mut self,
        header: &Header,
        files: &BackingFiles,
    ) -> Result<Vec<Box<dyn Layer>>, ImageError> {
        let Some(backing) = &header.backing else {
            return Ok(Vec::new());
        };
        let name = backing.name.clone();
        let format = match backing.format.as_deref() {
            Some("raw") => ImageFormat::Raw,
            Some("qcow2") => ImageFormat::Qcow2,
            // Images of older programs do not say it. Nobody has written to a backing file.
            None => ImageFormat::Detect,
            Some(other) => return Err(Qcow2Error::BackingFormat(other.to_owned()).into()),
        };
        let (file, backing) = match files.open(&name) {
            Ok(opened) => opened,
            Err(source) => return Err(ImageError::BackingFile { name, source }),
        };
        let source = ImageSource {
            file,
            format,
            backing,
        };
        self.open_layers(source).map_err(|source| match source {
            nested @ (ImageError::Backing { .. } | ImageError::BackingFile { .. }) => nested,
            source => ImageError::Backing {
                name,
                source: Box::new(source),
            },
        })
    }
}
