//! The machine's console, which people are attached to.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

use crate::stage::terminal;

/// Lists the kernel's consoles; the last one is what /dev/console is (Documentation/ABI/testing/sysfs-tty).
const ACTIVE: &str = "/sys/class/tty/console/active";

/// Tells the console how large the terminal at its other end is.
///
/// # Errors
///
/// When there is no console, or the kernel refuses.
pub fn resize(rows: u32, columns: u32) -> io::Result<()> {
    let active = std::fs::read_to_string(ACTIVE)?;
    let name = active
        .split_ascii_whitespace()
        .last()
        .ok_or(io::ErrorKind::NotFound)?;
    // Neither does it become ours, nor do we wait for a line that is not connected.
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    let device = File::options()
        .read(true)
        .custom_flags(flags)
        .open(format!("/dev/{name}"))?;
    terminal::resize(device.as_fd(), rows, columns)
}
