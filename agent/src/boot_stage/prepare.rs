//! What the boot stage needs before it serves.

use rustix::mount::{MountFlags, mount};

use super::{BootStageError, step};

const HARDENED: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Kind, target and flags, in the order in which they are mounted.
const FILE_SYSTEMS: &[(&str, &str, MountFlags)] = &[
    ("proc", "/proc", HARDENED),
    ("sysfs", "/sys", HARDENED),
    ("devtmpfs", "/dev", MountFlags::NOSUID),
    ("tmpfs", "/run", HARDENED),
];

/// Mounts what the boot stage works with.
///
/// # Errors
///
/// [`BootStageError::Step`] with the file system.
pub fn prepare() -> Result<(), BootStageError> {
    for (kind, target, flags) in FILE_SYSTEMS {
        std::fs::create_dir_all(target).map_err(step(*target))?;
        mount(*kind, *target, *kind, *flags, c"").map_err(step(*target))?;
    }
    Ok(())
}
