//! AppArmor in the guest: profiles that a pod names come compiled from its host and are loaded
//! into the guest's kernel.

use std::io;
use std::os::fd::AsFd as _;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// The file that takes policy, relative to the root of securityfs; profiles that exist are
/// replaced (Linux, security/apparmor/apparmorfs.c).
const REPLACE: &str = "apparmor/.replace";

/// The guest's kernel does not take a policy.
#[derive(Debug, thiserror::Error)]
#[error("load the AppArmor policy of the host into the guest's kernel")]
pub struct PolicyError(#[from] io::Error);

/// Loads compiled policy. securityfs is mounted for that, but nowhere: no container gets to see it.
///
/// # Errors
///
/// [`PolicyError`], with EPROTONOSUPPORT where the host's policy is newer than the guest's kernel.
pub fn load(policy: &[u8]) -> Result<(), PolicyError> {
    Ok(replace(policy)?)
}

fn replace(policy: &[u8]) -> io::Result<()> {
    let context = fsopen("securityfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let root = fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&root, REPLACE, flags, Mode::empty())?;
    // The kernel takes a policy in one piece or not at all.
    rustix::io::write(&file, policy)?;
    Ok(())
}
