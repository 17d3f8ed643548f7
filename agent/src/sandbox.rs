//! What the guest as a whole is told: clock, entropy, names, network, kernel
//! settings, shared memory, the file system of the host.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd as _;

use podvisor_proto::agent::v1::{ConfigureSandboxRequest, NetworkConfig};
use podvisor_proto::agent::{FS_TAG, MIRROR_DIR, SHARED_DIR, SHM_DIR};
use rustix::fs::Mode;
use rustix::mount::{MountFlags, mount};
use rustix::system::RebootCommand;

use crate::network::{self, NetworkError};
use crate::pod_users::{PodUsers, PodUsersError};
use crate::{clock, sysctl};

/// Size of /dev/shm where the pod names none.
const DEFAULT_SHM_BYTES: u64 = 64 << 20;
/// Most entropy taken at once; the kernel's pool has 256 bits.
const MAX_ENTROPY: usize = 512;
/// RNDADDENTROPY (linux/random.h): _IOW('R', 3, int[2]).
const ADD_ENTROPY: libc::c_ulong = 0x4008_5203;

/// Why the sandbox could not be configured.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A step failed.
    #[error("{what}")]
    Step {
        /// Which.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The network.
    #[error("configure the network")]
    Network(#[from] NetworkError),
    /// Its users.
    #[error(transparent)]
    Users(#[from] PodUsersError),
}

fn step<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> SandboxError {
    move |source| SandboxError::Step {
        what: what.into(),
        source: source.into(),
    }
}

/// Gives the guest its pod; yields the pod's user namespace, when it has one.
///
/// # Errors
///
/// [`SandboxError`] with the step.
pub fn configure(request: &ConfigureSandboxRequest) -> Result<Option<PodUsers>, SandboxError> {
    if request.wall_clock_ns != 0 {
        set_clock(request.wall_clock_ns)?;
    }
    add_entropy(&request.entropy).map_err(step("add entropy"))?;
    let network = request.network.clone().unwrap_or_default();
    let users = match &request.users {
        Some(maps) => Some(PodUsers::enter(maps, &network)?),
        None => None,
    };
    if !request.hostname.is_empty() {
        rustix::system::sethostname(request.hostname.as_bytes()).map_err(step("set hostname"))?;
    }
    if !request.domainname.is_empty() {
        rustix::system::setdomainname(request.domainname.as_bytes())
            .map_err(step("set domainname"))?;
    }
    mount_file_systems(request.shm_size_bytes)?;
    configure_network(&network)?;
    write_sysctls(&request.sysctls)?;
    Ok(users)
}

/// Configures interfaces, addresses and routes.
///
/// # Errors
///
/// [`SandboxError::Network`] naming the object.
pub fn configure_network(config: &NetworkConfig) -> Result<(), SandboxError> {
    Ok(network::configure(config)?)
}

/// Sets the wall clock, in nanoseconds since the epoch.
///
/// # Errors
///
/// [`SandboxError::Step`].
pub fn set_clock(wall_clock_ns: i64) -> Result<(), SandboxError> {
    clock::set_wall(wall_clock_ns).map_err(step("set the clock"))
}

/// Syncs file systems and powers the guest off.
pub fn shut_down() {
    rustix::fs::sync();
    // Fails only without the privilege that PID 1 has.
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
}

/// Memory of the guest in bytes: all of it, and what could be had.
#[must_use]
pub fn memory_bytes() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    (
        meminfo_bytes(&text, "MemTotal:"),
        meminfo_bytes(&text, "MemAvailable:"),
    )
}

fn meminfo_bytes(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let kib: u64 = line
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    kib << 10
}

fn mount_file_systems(shm_size_bytes: u64) -> Result<(), SandboxError> {
    for path in [SHARED_DIR, SHM_DIR, MIRROR_DIR] {
        std::fs::create_dir_all(path).map_err(step(path))?;
        rustix::fs::chmod(path, Mode::from_raw_mode(0o755)).map_err(step(path))?;
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    // Container images hold set-id programs: nosuid is the containers' choice, as
    // on the host; the host's export has no device nodes.
    mount(FS_TAG, SHARED_DIR, "virtiofs", MountFlags::NODEV, c"")
        .map_err(step(format!("mount virtio-fs {FS_TAG}")))?;
    let size = if shm_size_bytes == 0 {
        DEFAULT_SHM_BYTES
    } else {
        shm_size_bytes
    };
    let options = std::ffi::CString::new(format!("mode=1777,size={size}")).unwrap_or_default();
    mount(
        "shm",
        SHM_DIR,
        "tmpfs",
        flags | MountFlags::NOEXEC,
        options.as_c_str(),
    )
    .map_err(step("mount the pod's /dev/shm"))
}

fn write_sysctls(sysctls: &HashMap<String, String>) -> Result<(), SandboxError> {
    for (name, value) in sysctls {
        sysctl::write(name, value).map_err(step(format!("set sysctl {name}")))?;
    }
    Ok(())
}

/// Mixes bytes from the host into the kernel's pool, and credits them.
fn add_entropy(entropy: &[u8]) -> io::Result<()> {
    let entropy = entropy
        .get(..entropy.len().min(MAX_ENTROPY))
        .unwrap_or_default();
    if entropy.is_empty() {
        return Ok(());
    }
    let len = i32::try_from(entropy.len()).map_err(io::Error::other)?;
    // `struct rand_pool_info`: bits, bytes, the bytes.
    let mut info = (len * 8).to_ne_bytes().to_vec();
    info.extend(len.to_ne_bytes());
    info.extend(entropy);
    let device = std::fs::File::options().write(true).open("/dev/urandom")?;
    // SAFETY: the kernel reads the two lengths and as many bytes as they say,
    // all of which `info` holds.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), ADD_ENTROPY, info.as_ptr()) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_in_kibibytes() {
        let text = "MemTotal:         124000 kB\nMemFree: 1 kB\nMemAvailable:   99000 kB\n";
        assert_eq!(meminfo_bytes(text, "MemTotal:"), 124_000 << 10);
        assert_eq!(meminfo_bytes(text, "MemAvailable:"), 99_000 << 10);
        assert_eq!(meminfo_bytes(text, "Absent:"), 0);
    }
}
