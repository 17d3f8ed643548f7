//! Attributes of host files as the guest sees them: its inode numbers, times and modes.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::AsFd;

use fuse_backend_rs::abi::fuse_abi::{stat64, statvfs64};
use rustix::fs::{AtFlags, Statx, StatxFlags, StatxTimestamp, makedev, statx};

/// The inode number of the tree's root.
pub(super) const TREE_ROOT_INO: u64 = 1;

/// Bits of a host inode number that are kept as they are.
const INO_BITS: u32 = 48;
/// Bits of a volume number that are kept as they are.
const VOLUME_BITS: u32 = 15;
/// Marks a number that is a hash because volume or inode number are larger than that.
const HASHED: u64 = 1 << 63;
const _: () = assert!(
    INO_BITS + VOLUME_BITS == 63,
    "the bits fill a word below HASHED"
);

/// Which file of the host this is, for as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    /// The mount it was reached through: a directory that is mounted twice is two for a guest,
    /// whose kernel allows a directory one place only.
    pub mount: u64,
    /// The device of its file system.
    pub dev: u64,
    /// Its inode number there.
    pub ino: u64,
}

/// What the host says about a file.
#[derive(Clone, Copy)]
pub(super) struct FileStat(Statx);

impl FileStat {
    /// Asks about an open file; one opened with `O_PATH` will do.
    ///
    /// # Errors
    /// Those of statx(2).
    pub fn of(fd: impl AsFd) -> io::Result<Self> {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        Ok(Self(statx(fd, c"", AtFlags::EMPTY_PATH, wanted)?))
    }

    /// Which file it is.
    pub fn identity(&self) -> Identity {
        Identity {
            mount: self.0.stx_mnt_id,
            dev: self.dev(),
            ino: self.0.stx_ino,
        }
    }

    /// The device of the file's file system.
    pub fn dev(&self) -> u64 {
        makedev(self.0.stx_dev_major, self.0.stx_dev_minor)
    }

    /// The file's type: the `S_IFMT` bits of its mode.
    pub fn kind(&self) -> u32 {
        u32::from(self.0.stx_mode) & libc::S_IFMT
    }

    /// The file's size in bytes.
    pub fn size(&self) -> u64 {
        self.0.stx_size
    }

    /// Whether its file system is one of a block device: others have devices of major number 0
    /// (Linux, Documentation/admin-guide/devices.txt).
    pub fn is_on_disk(&self) -> bool {
        self.0.stx_dev_major != 0
    }

    /// The attributes for a guest that knows the file's volume as `volume`.
    pub fn attributes(&self, volume: u64) -> stat64 {
        let mut attributes = no_attributes();
        attributes.st_ino = guest_ino(volume, self.0.stx_ino);
        attributes.st_mode = u32::from(self.0.stx_mode);
        attributes.st_nlink = u64::from(self.0.stx_nlink);
        attributes.st_uid = self.0.stx_uid;
        attributes.st_gid = self.0.stx_gid;
        attributes.st_rdev = makedev(self.0.stx_rdev_major, self.0.stx_rdev_minor);
        attributes.st_size = i64::try_from(self.0.stx_size).unwrap_or(i64::MAX);
        attributes.st_blocks = i64::try_from(self.0.stx_blocks).unwrap_or(i64::MAX);
        attributes.st_blksize = i64::from(self.0.stx_blksize);
        (attributes.st_atime, attributes.st_atime_nsec) = seconds(&self.0.stx_atime);
        (attributes.st_mtime, attributes.st_mtime_nsec) = seconds(&self.0.stx_mtime);
        (attributes.st_ctime, attributes.st_ctime_nsec) = seconds(&self.0.stx_ctime);
        attributes
    }
}

fn seconds(time: &StatxTimestamp) -> (i64, i64) {
    (time.tv_sec, i64::from(time.tv_nsec))
}

/// The inode number a guest sees. All exports are one file system to it, so the host's numbers
/// alone would make files of two exports look like hard links of each other.
///
/// `volume` counts from 1 the pairs of export and host device in the order they were met.
pub(super) fn guest_ino(volume: u64, ino: u64) -> u64 {
    if volume >> VOLUME_BITS == 0 && ino >> INO_BITS == 0 {
        return volume << INO_BITS | ino;
    }
    let mut hasher = DefaultHasher::new();
    (volume, ino).hash(&mut hasher);
    HASHED | hasher.finish()
}

/// Attributes of nothing, to be filled in.
pub(super) fn no_attributes() -> stat64 {
    // SAFETY: stat64 is plain integers, for which all bits zero are a value.
    unsafe { std::mem::zeroed() }
}

/// Attributes of the tree's root: a directory nobody can write.
pub(super) fn tree_root_attributes() -> stat64 {
    let mut attributes = no_attributes();
    attributes.st_ino = TREE_ROOT_INO;
    attributes.st_mode = libc::S_IFDIR | 0o555;
    attributes.st_nlink = 2;
    attributes.st_blksize = 4096;
    attributes
}

/// The numbers of a file system without space or files: what the tree's root is.
pub(super) fn tree_root_statistics() -> statvfs64 {
    // SAFETY: statvfs64 is plain integers, for which all bits zero are a value.
    let mut statistics: statvfs64 = unsafe { std::mem::zeroed() };
    statistics.f_bsize = 4096;
    statistics.f_frsize = 4096;
    statistics.f_namemax = 255;
    statistics
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_of_ordinary_file_systems_never_collide(
            a in (1_u64..1 << VOLUME_BITS, 0_u64..1 << INO_BITS),
            b in (1_u64..1 << VOLUME_BITS, 0_u64..1 << INO_BITS),
        ) {
            prop_assert_eq!(guest_ino(a.0, a.1) == guest_ino(b.0, b.1), a == b);
        }

        #[test]
        fn a_number_is_stable_and_not_the_roots(volume in 1_u64.., ino: u64) {
            prop_assert_eq!(guest_ino(volume, ino), guest_ino(volume, ino));
            prop_assert_ne!(guest_ino(volume, ino), TREE_ROOT_INO);
        }
    }
}
