//! What PID 1 does before it serves: file systems, cgroups, limits.

use std::io;

use rustix::mount::{MountFlags, mount, mount_bind, mount_move, mount_remount};
use rustix::process::{DumpableBehavior, Resource, Rlimit};

use crate::cgroup::{self, CGROUP_ROOT, CgroupError};
use crate::network::NetworkError;

/// Where the initramfs is bound before it becomes a proper root.
const NEW_ROOT: &str = "/.root";
/// Descriptors a process may open, what containerd's own service gives to runc.
const MAX_OPEN_FILES: u64 = 1 << 20;
/// The kernel never picks the agent when memory runs out.
const OOM_SCORE: &str = "-1000";

/// What the kernel keeps free for itself, in KiB (admin-guide/sysctl/vm.rst).
const MIN_FREE: &str = "/proc/sys/vm/min_free_kbytes";
/// Bounds of the kernel's own choice for it, in KiB (mm/page_alloc.c, calculate_min_free_kbytes).
const MIN_FREE_BOUNDS: (u64, u64) = (128, 262_144);
/// Whether the kernel promises more memory than there is, and what a kubelet sets on its node for
/// every container (setupKernelTunables, VMOvercommitMemoryAlways): always.
const OVERCOMMIT: (&str, &str) = ("/proc/sys/vm/overcommit_memory", "1");
/// Whether the kernel hurries with RCU grace periods (kernel/ksysfs.c).
const RCU_EXPEDITED: &str = "/sys/kernel/rcu_expedited";

/// A file system that every guest has.
struct Filesystem {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: &'static std::ffi::CStr,
}

const HARDENED: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// In the order in which they are mounted.
const FILESYSTEMS: &[Filesystem] = &[
    Filesystem {
        kind: "proc",
        target: "/proc",
        flags: HARDENED,
        data: c"",
    },
    Filesystem {
        kind: "sysfs",
        target: "/sys",
        flags: HARDENED,
        data: c"",
    },
    Filesystem {
        kind: "devtmpfs",
        target: "/dev",
        flags: MountFlags::NOSUID,
        data: c"mode=755",
    },
    Filesystem {
        kind: "devpts",
        target: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: c"mode=620,ptmxmode=666",
    },
    Filesystem {
        kind: "tmpfs",
        target: "/dev/shm",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: c"mode=1777",
    },
    Filesystem {
        kind: "mqueue",
        target: "/dev/mqueue",
        flags: HARDENED,
        data: c"",
    },
    Filesystem {
        kind: "cgroup2",
        target: CGROUP_ROOT,
        flags: HARDENED,
        data: c"nsdelegate",
    },
    Filesystem {
        kind: "tmpfs",
        target: "/run",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: c"mode=755",
    },
];

/// Why the guest could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A step failed.
    #[error("{what}")]
    Step {
        /// Which one.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The cgroup tree.
    #[error("build the cgroup tree")]
    Cgroup(#[from] CgroupError),
    /// The loopback interface.
    #[error("bring up loopback")]
    Network(#[from] NetworkError),
}

fn step<E: Into<io::Error>>(what: &str) -> impl FnOnce(E) -> BootError {
    move |source| BootError::Step {
        what: what.to_owned(),
        source: source.into(),
    }
}

/// Prepares the guest.
///
/// # Errors
///
/// [`BootError`] with the step; the guest cannot be used then.
pub fn prepare() -> Result<(), BootError> {
    rustix::process::umask(rustix::fs::Mode::empty());
    leave_initramfs()?;
    for filesystem in FILESYSTEMS {
        let Filesystem {
            kind,
            target,
            flags,
            data,
        } = filesystem;
        make_directory(target)?;
        mount(*kind, *target, *kind, *flags, *data).map_err(step(target))?;
    }
    // Stages are executed from here, and a container must never write to their file.
    mount_remount("/", MountFlags::BIND | MountFlags::RDONLY, c"").map_err(step("remount /"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(step("clear dumpable"))?;
    std::fs::write("/proc/self/oom_score_adj", OOM_SCORE).map_err(step("set oom_score_adj"))?;
    lower_reserve().map_err(step("set vm.min_free_kbytes"))?;
    let (overcommit, always) = OVERCOMMIT;
    std::fs::write(overcommit, always).map_err(step("set vm.overcommit_memory"))?;
    raise_limits()?;
    build_cgroups()?;
    crate::network::bring_loopback_up()?;
    Ok(())
}

/// Takes back what huge pages add to the kernel's reserve: from 512 MiB on khugepaged raises it to
/// 22 MiB a zone (mm/khugepaged.c, set_recommended_min_free_kbytes), which no container could use.
///
/// # Errors
///
/// What the kernel says.
pub fn lower_reserve() -> io::Result<()> {
    let memory = rustix::system::sysinfo();
    let kib = (memory.totalram * u64::from(memory.mem_unit)) >> 10;
    let (least, most) = MIN_FREE_BOUNDS;
    let reserve = (kib * 16).isqrt().clamp(least, most);
    std::fs::write(MIN_FREE, reserve.to_string())
}

/// Builds the cgroup tree. Moving a process waits for an RCU grace period,
/// which takes milliseconds on an idle guest unless it is expedited.
fn build_cgroups() -> Result<(), BootError> {
    // Only the time depends on it.
    let _ = std::fs::write(RCU_EXPEDITED, "1");
    let built = cgroup::build_tree();
    let _ = std::fs::write(RCU_EXPEDITED, "0");
    Ok(built?)
}

/// Binds the initramfs to itself and moves there: the initial root has no
/// parent mount, and pivot_root refuses to leave such a root.
fn leave_initramfs() -> Result<(), BootError> {
    make_directory(NEW_ROOT)?;
    mount_bind("/", NEW_ROOT).map_err(step("bind /"))?;
    rustix::process::chdir(NEW_ROOT).map_err(step("enter the bound root"))?;
    mount_move(".", "/").map_err(step("move the bound root"))?;
    rustix::process::chroot(".").map_err(step("chroot"))?;
    rustix::process::chdir("/").map_err(step("chdir /"))
}

fn make_directory(path: &str) -> Result<(), BootError> {
    match rustix::fs::mkdir(path, rustix::fs::Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(step(path)(errno)),
    }
}

/// Containers inherit PID 1's limits; the kernel's own defaults depend on the
/// guest's size.
fn raise_limits() -> Result<(), BootError> {
    let open_files = Rlimit {
        current: Some(MAX_OPEN_FILES),
        maximum: Some(MAX_OPEN_FILES),
    };
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    for (resource, limit) in [
        (Resource::Nofile, open_files),
        (Resource::Nproc, unlimited),
        (Resource::Core, unlimited),
    ] {
        rustix::process::setrlimit(resource, limit).map_err(step("raise resource limits"))?;
    }
    Ok(())
}
