//! qcow2 images (QEMU's docs/interop/qcow2.rst), versions 2 and 3.
//!
//! An image comes from strangers: whatever its metadata say is checked before it is used, sizes
//! no allocation without a bound, and leads nowhere but into the image's own file, where it is
//! no metadata. Writing only ever adds clusters at the file's end. What is new reaches the file in an
//! order that leaves a sound image whenever the host stops: data and reference counts first, then
//! what refers to them.
//!
//! Not served: encryption, external data files, subclusters, zstd; and for writing, images with
//! internal snapshots.

mod compressed;
mod entry;
mod flush;
mod header;
mod layer;
mod metadata;
mod read_only;
mod refcounts;
mod tables;

use std::io;

use thiserror::Error;

pub use self::header::{Header, is_qcow2};
pub use self::layer::Qcow2Layer;
pub use self::read_only::Qcow2ReadOnly;

/// What is wrong with an image.
#[derive(Debug, Error)]
pub enum Qcow2Error {
    /// The file cannot be read.
    #[error("cannot read the image's {part}")]
    Read {
        /// Which part of it.
        part: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It cannot be made ready for writing.
    #[error("cannot write to the image")]
    Write(#[source] io::Error),
    /// It is not in this format.
    #[error("it does not begin as a qcow2 image does")]
    Magic,
    /// The file ends within its metadata.
    #[error("the file ends within its {0}")]
    Truncated(&'static str),
    /// Neither version 2 nor 3.
    #[error("it is of version {0}; there are 2 and 3")]
    Version(u32),
    /// A number of the header is none that there can be.
    #[error("its header says {field} {value}, which cannot be")]
    Field {
        /// What it is.
        field: &'static str,
        /// The number.
        value: u64,
    },
    /// It is encrypted.
    #[error("it is encrypted, which is not supported")]
    Encrypted,
    /// It needs something of its reader that is not there.
    #[error("it needs the feature {0}, which is not supported")]
    Feature(String),
    /// Something is larger than what is served.
    #[error("its {what} is of {len} bytes; {max} at most are supported")]
    TooLarge {
        /// What.
        what: &'static str,
        /// How large.
        len: u64,
        /// The bound.
        max: u64,
    },
    /// Something lies outside of the file.
    #[error("its {what} at {offset:#x} lies outside of the file")]
    Outside {
        /// What.
        what: &'static str,
        /// Where it says it lies.
        offset: u64,
    },
    /// Something does not begin where a cluster does, or has bits that must not be set.
    #[error("its {what} has the entry {entry:#x}, which cannot be")]
    Entry {
        /// The table.
        what: &'static str,
        /// What it says.
        entry: u64,
    },
    /// Two parts of the metadata lie in one place.
    #[error("its {first} and its {second} are both at {offset:#x}")]
    Overlap {
        /// One.
        first: &'static str,
        /// The other.
        second: &'static str,
        /// Where.
        offset: u64,
    },
    /// The name of the backing file is no text.
    #[error("the name of its backing file is no text")]
    BackingName,
    /// The backing file's format is none of those served.
    #[error("its backing file is of format '{0}'; qcow2 and raw are supported")]
    BackingFormat(String),
    /// It cannot be written to.
    #[error("it {0}: it can only be read")]
    ReadOnly(&'static str),
}

#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
