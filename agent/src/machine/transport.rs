//! AF_VSOCK in a machine, whose kernel has it as modules.

use std::io;
use std::process::{Command, Stdio};

use crate::sys::vsock;

/// The family, and the way to the host.
const MODULES: [&str; 2] = ["vsock", "vmw_vsock_virtio_transport"];

/// Makes sure that there is a way to the host.
///
/// # Errors
///
/// What socket(2) said, where the modules cannot be loaded either.
pub fn prepare() -> io::Result<()> {
    if vsock::has_host_transport() {
        return Ok(());
    }
    for module in MODULES {
        // Whether that was of use shows below.
        let _ = Command::new("modprobe")
            .args(["-q", module])
            .stdin(Stdio::null())
            .env("PATH", super::account::PATH)
            .status();
    }
    vsock::probe()
}
