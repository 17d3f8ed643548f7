//! The jump into the loaded kernel.

use std::fs;
use std::io;

use podvisor_proto::agent::SHARED_DIR;
use rustix::mount::{UnmountFlags, unmount};
use rustix::system::RebootCommand;

/// The driver of all of a machine's devices, and where it is told to let go of one
/// (Documentation/ABI/testing/sysfs-bus-pci).
const DRIVER: &str = "/sys/bus/pci/drivers/virtio-pci";

/// Leaves nothing of this stage at work and starts the loaded kernel. Comes back with an error only.
pub fn jump() -> io::Error {
    // Not mounted where a disk is booted.
    let _ = unmount(SHARED_DIR, UnmountFlags::DETACH);
    rustix::fs::sync();
    release_devices();
    match rustix::system::reboot(RebootCommand::Kexec) {
        Ok(()) => io::ErrorKind::Other.into(),
        Err(errno) => errno.into(),
    }
}

/// Resets all devices. The kernel's own shutdown takes bus mastering from them, but the next kernel
/// gives it back before it resets them, and a device would go on with queues that lie in memory
/// which is something else by then.
fn release_devices() {
    for entry in fs::read_dir(DRIVER).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // Functions, not the driver's own files: 0000:00:01.0.
        if name.contains(':')
            && let Err(error) = fs::write(format!("{DRIVER}/unbind"), &*name)
        {
            tracing::warn!(function = &*name, %error, "a device cannot be released");
        }
    }
}
