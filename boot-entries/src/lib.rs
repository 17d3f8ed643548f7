//! What the disks of a machine say of how it is booted.
//!
//! Every byte comes from a disk that somebody else wrote. The parsers here do no I/O but through
//! [`FileTree`], hold no unsafe code, and bound whatever a disk could make large: files, words,
//! loops, recursion.
//!
//! [`discover`] looks at the volumes of a disk and returns what can be booted, best first, and
//! what was found and is of no use.

#![forbid(unsafe_code)]

pub mod bls;
pub mod bzimage;
mod discover;
pub mod extlinux;
pub mod fstab;
pub mod grub;
pub mod lvm;
pub mod modules;
pub mod partitions;
pub mod plain;
pub mod superblock;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tree;
pub mod uki;
mod version;
mod volume;

pub use discover::{Discovery, discover};
pub use tree::{FileKind, FileTree, MAX_CONFIG_LEN, ReadError, read_config};
pub use version::compare as compare_versions;
pub use volume::{Entry, File, Origin, Volume};
