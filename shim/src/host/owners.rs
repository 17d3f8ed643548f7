//! Mounts whose files have other owners than their file system says (mount_setattr(2),
//! `MOUNT_ATTR_IDMAP`), and other attributes of mounts that are not attached yet.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags, open};

use crate::pod::users::UserMaps;

/// `MOUNT_ATTR_SIZE_VER0` (linux/mount.h): `struct mount_attr` has not grown since.
const _: () = assert!(size_of::<libc::mount_attr>() == 32);

/// Takes a copy of mounts out of its original's propagation.
///
/// # Errors
/// What the host said.
pub(super) fn make_private(tree: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: 0,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    set_attributes(tree, &attributes, libc::AT_RECURSIVE)
}

/// Gives the files of a mount, one that is not attached yet, the owners that `maps` says: not those
/// of mounts below it, as runc has it.
///
/// # Errors
/// What the host said: EINVAL when the file system cannot.
pub(super) fn change_owners(tree: BorrowedFd<'_>, maps: &UserMaps) -> io::Result<()> {
    let namespace = user_namespace(maps)?;
    let userns_fd = u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd,
    };
    set_attributes(tree, &attributes, 0)
}

fn set_attributes(
    tree: BorrowedFd<'_>,
    attributes: &libc::mount_attr,
    flags: libc::c_int,
) -> io::Result<()> {
    // SAFETY: an empty C string, and a structure whose size is passed along; the kernel reads
    // both before the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            &raw const *attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A user namespace with these maps, which is how the kernel takes them.
fn user_namespace(maps: &UserMaps) -> io::Result<OwnedFd> {
    let holder = Holder::start()?;
    let folder = format!("/proc/{}", holder.0);
    let [users, groups] = maps.lines();
    fs::write(format!("{folder}/uid_map"), users)?;
    fs::write(format!("{folder}/gid_map"), groups)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(open(format!("{folder}/ns/user"), flags, Mode::empty())?)
}

/// A process that does nothing but have a user namespace of its own.
struct Holder(Pid);

impl Holder {
    fn start() -> io::Result<Self> {
        // SAFETY: clone_args is plain data for which zeros are valid.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.flags = u64::from(libc::CLONE_NEWUSER.unsigned_abs());
        // SAFETY: without CLONE_VM this is fork: the child has its own copy of the address space
        // and of the stack; the arguments outlive the call. Other threads may hold locks just
        // now, which the child never takes: it makes system calls only.
        let result = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw const arguments,
                size_of::<libc::clone_args>(),
            )
        };
        match result {
            -1 => Err(io::Error::last_os_error()),
            0 => wait_for_kill(),
            pid => {
                let pid = i32::try_from(pid).map_err(io::Error::other)?;
                Ok(Self(Pid::from_raw(pid)))
            }
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // SAFETY: a plain system call on integers; the child is this process's and not waited for,
        // so that its number is still its own.
        unsafe { libc::kill(self.0.as_raw(), libc::SIGKILL) };
        // It sends no signal at its end, and is only waited for when asked for like this.
        while let Err(Errno::EINTR) = waitpid(self.0, Some(WaitPidFlag::__WALL)) {}
    }
}

/// The child's whole life; it ends with its parent thread at the latest.
fn wait_for_kill() -> ! {
    // SAFETY: a plain system call on integers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
    loop {
        // SAFETY: a system call without arguments.
        unsafe { libc::pause() };
    }
}
