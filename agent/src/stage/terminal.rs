//! The process's terminal: a pair from the container's own devpts, whose master
//! goes to the agent.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::StageError;
use super::mount_options::Recursion;
use super::mounts::{attach_tree, clone_tree_of};
use super::protocol::{Control, StageConfig};
use super::root::{Missing, Root};
use crate::oci::Process;

/// Greatest size of a terminal in either direction (`struct winsize` is 16 bits wide).
const MAX_CELLS: u32 = 0xffff;
/// Device number of a devpts' ptmx (Documentation/admin-guide/devices.txt).
const PTMX: (u32, u32) = (5, 2);

/// Makes a terminal pair, hands the master to the agent and puts the process on
/// the slave; with `console` it also becomes /dev/console.
///
/// # Errors
///
/// [`StageError`] with the step.
pub fn attach(
    root: &Root,
    config: &StageConfig,
    process: &Process,
    control: &Control,
    console: bool,
) -> Result<(), StageError> {
    let (master, slave) = open_pair(root).map_err(StageError::step("open a terminal"))?;
    if config.rows != 0 && config.columns != 0 {
        resize(master.as_fd(), config.rows, config.columns)
            .map_err(StageError::step("set the terminal's size"))?;
    }
    let (owner, group) = (Uid::from_raw(process.user.uid), None::<Gid>);
    rustix::fs::fchown(&slave, Some(owner), group)
        .map_err(StageError::step("give the terminal to the user"))?;
    if console {
        bind_console(root, &slave).map_err(StageError::step("bind /dev/console"))?;
    }
    control
        .report_terminal(master.as_fd())
        .map_err(StageError::step("hand over the terminal"))?;
    rustix::process::ioctl_tiocsctty(&slave)
        .map_err(StageError::step("make the terminal controlling"))?;
    become_standard_streams(&slave).map_err(StageError::step("open the terminal's streams"))
}

/// Sets a terminal's size in characters; a greater one than the kernel can hold
/// becomes the greatest.
///
/// # Errors
///
/// What ioctl(TIOCSWINSZ) said.
pub fn resize(master: std::os::fd::BorrowedFd<'_>, rows: u32, columns: u32) -> io::Result<()> {
    let cells = |count: u32| u16::try_from(count.min(MAX_CELLS)).unwrap_or(u16::MAX);
    let size = Winsize {
        ws_row: cells(rows),
        ws_col: cells(columns),
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(master, size)?)
}

fn open_pair(root: &Root) -> io::Result<(OwnedFd, OwnedFd)> {
    let directory = root.resolve("/dev/pts", Missing::Fail)?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let master = rustix::fs::openat(&directory, "ptmx", flags, Mode::empty())?;
    // The container may have put anything there.
    if rustix::fs::fstat(&master)?.st_rdev != rustix::fs::makedev(PTMX.0, PTMX.1) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "/dev/pts/ptmx is no terminal multiplexer",
        ));
    }
    rustix::pty::unlockpt(&master)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    Ok((master, slave))
}

fn bind_console(root: &Root, slave: &OwnedFd) -> io::Result<()> {
    let target = root.resolve("/dev/console", Missing::File)?;
    let tree = clone_tree_of(slave.as_fd(), Recursion::Single)?;
    attach_tree(tree.as_fd(), target.as_fd())
}

fn become_standard_streams(slave: &OwnedFd) -> io::Result<()> {
    for target in 0..3 {
        // SAFETY: replaces descriptors 0 to 2, which no object of this program owns.
        let result = unsafe { libc::dup2(slave.as_raw_fd(), target) };
        if result == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
