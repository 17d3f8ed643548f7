//! What each kind of thread may do: only the capabilities and the system calls it needs. Threads
//! share an address space, so that this is defence in depth and no boundary.

use std::io;

use podvisor_devices::event_loop::EventLoop;
use podvisor_devices::net::VHOST_REQUESTS;
use thiserror::Error;

use crate::seccomp::{Filter, FilterError};

/// A thread with its own rights. A filtered thread never spawns another: the new one would
/// inherit its filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs a processor, and device registers on its exits.
    Vcpu,
    /// Runs the loop that serves devices.
    Io,
    /// Runs one disk.
    Disk,
    /// Serves file system requests; keeps the capabilities that files of other users take.
    Fs,
    /// Starts a machine over: reads its kernel, writes its processors' state.
    Reset,
}

/// Why a thread could not be confined.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// The kernel keeps the capabilities.
    #[error("cannot drop capabilities")]
    Capabilities(#[source] io::Error),
    /// The filter cannot be built or installed.
    #[error("cannot install the system call filter")]
    Filter(#[from] FilterError),
}

/// What every thread of Rust's runtime and the C library's allocator does, and event files.
const RUNTIME: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Debug builds check a file before they close it.
    libc::SYS_fcntl,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Activation and reset take descriptors on and off the loops of other threads.
const VCPU: &[i64] = &[libc::SYS_epoll_ctl];

/// The event loop, packets through a tap, and the timers of limited rates and of the watchdog.
const IO: &[i64] = &[
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_readv,
    libc::SYS_timerfd_settime,
];

/// The event loop, io_uring or what stands in for it, an image's metadata, and the timer of
/// limited rates.
const DISK: &[i64] = &[
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_io_uring_enter,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_timerfd_settime,
];

/// Kernel and initial image, and what resetting devices takes ([`VCPU`]).
const RESET: &[i64] = &[
    libc::SYS_epoll_ctl,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_statx,
];

/// What file system requests become, and the switch to a request's user.
const FS: &[i64] = &[
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_copy_file_range,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_fallocate,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_readlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_syncfs,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
];

// Requests of ioctl(2).
const KVM_RUN: u32 = 0xae80;
const KVM_GET_REGS: u32 = 0x8090_ae81;
const KVM_SIGNAL_MSI: u32 = 0x4020_aea5;
const KVM_SET_GSI_ROUTING: u32 = 0x4008_ae6a;
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
/// Puts one of the queues of a tap in or out of use.
const TUNSETQUEUE: u32 = 0x4004_54d9;
/// A machine's state: of processors, then of what they share.
const KVM_STATE: &[u32] = &[
    0x4090_ae82, // KVM_SET_REGS
    0x8138_ae83, // KVM_GET_SREGS
    0x4138_ae84, // KVM_SET_SREGS
    0x4008_ae89, // KVM_SET_MSRS
    0x4400_ae8f, // KVM_SET_LAPIC
    0x8004_ae98, // KVM_GET_MP_STATE
    0x4004_ae99, // KVM_SET_MP_STATE
    0x4040_aea0, // KVM_SET_VCPU_EVENTS
    0x4080_aea2, // KVM_SET_DEBUGREGS
    0x5000_aea5, // KVM_SET_XSAVE
    0x4188_aea7, // KVM_SET_XCRS
    0x8208_ae63, // KVM_SET_IRQCHIP
    0x4030_ae7b, // KVM_SET_CLOCK
];

// Capabilities (linux/capability.h).
const CAP_CHOWN: u32 = 0;
const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_DAC_READ_SEARCH: u32 = 2;
const CAP_FOWNER: u32 = 3;
const CAP_FSETID: u32 = 4;
const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
/// For `trusted.*` attributes, which overlay file systems use.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SETFCAP: u32 = 31;

/// The rights of one kind of thread.
struct Rights {
    calls: &'static [i64],
    ioctls: &'static [&'static [u32]],
    capabilities: &'static [u32],
}

impl ThreadKind {
    fn rights(self) -> Rights {
        match self {
            Self::Vcpu => Rights {
                calls: VCPU,
                // The registers of cards: where interrupts go, and the start and stop of what
                // the host's kernel serves. Which memory that is could only become this
                // process's own.
                ioctls: &[
                    &[KVM_RUN, KVM_GET_REGS, KVM_SIGNAL_MSI, KVM_SET_GSI_ROUTING],
                    &[TUNSETOFFLOAD, TUNSETQUEUE],
                    &VHOST_REQUESTS,
                ],
                capabilities: &[],
            },
            Self::Io => Rights {
                calls: IO,
                ioctls: &[&[KVM_SIGNAL_MSI, TUNSETQUEUE]],
                capabilities: &[],
            },
            Self::Disk => Rights {
                calls: DISK,
                ioctls: &[&[KVM_SIGNAL_MSI]],
                capabilities: &[],
            },
            Self::Fs => Rights {
                calls: FS,
                ioctls: &[&[KVM_SIGNAL_MSI]],
                capabilities: &[
                    CAP_CHOWN,
                    CAP_DAC_OVERRIDE,
                    CAP_DAC_READ_SEARCH,
                    CAP_FOWNER,
                    CAP_FSETID,
                    CAP_SETGID,
                    CAP_SETUID,
                    CAP_SYS_ADMIN,
                    CAP_SETFCAP,
                ],
            },
            Self::Reset => Rights {
                calls: RESET,
                ioctls: &[
                    KVM_STATE,
                    &[KVM_SIGNAL_MSI, KVM_SET_GSI_ROUTING],
                    &[TUNSETOFFLOAD, TUNSETQUEUE],
                    &VHOST_REQUESTS,
                ],
                capabilities: &[],
            },
        }
    }
}

/// Takes every right from the calling thread that its kind does not need.
///
/// # Errors
/// [`ConfineError`] when the kernel does not let it; the thread must then not go on.
pub fn enter(kind: ThreadKind) -> Result<(), ConfineError> {
    let rights = kind.rights();
    limit_capabilities(rights.capabilities).map_err(ConfineError::Capabilities)?;
    Ok(filter(&rights)?.install()?)
}

/// [`enter`] in the form that devices call on threads of their own.
pub fn on_start(kind: ThreadKind) -> impl Fn() -> io::Result<()> + Send + Sync + 'static {
    move || enter(kind).map_err(io::Error::other)
}

/// The loop that serves devices, on a new thread of its own kind.
///
/// # Errors
/// When the host has no thread or file for it, or does not let it be confined.
pub fn spawn_io_loop() -> io::Result<EventLoop> {
    EventLoop::spawn("io", Box::new(on_start(ThreadKind::Io)))
}

fn filter(rights: &Rights) -> Result<Filter, FilterError> {
    Filter::new(&[RUNTIME, rights.calls].concat(), &rights.ioctls.concat())
}

/// `struct __user_cap_header_struct` and `__user_cap_data_struct` (linux/capability.h).
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Leaves the calling thread those of its capabilities that are in `kept`. The raw call acts on
/// one thread; the C library has no other.
fn limit_capabilities(kept: &[u32]) -> io::Result<()> {
    let header = CapHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    let mut sets = [CapData {
        effective: 0,
        permitted: 0,
        inheritable: 0,
    }; 2];
    // SAFETY: Header and data have the layout of version 3, which is two data elements; the
    // kernel writes no more than them.
    let read = unsafe { libc::syscall(libc::SYS_capget, &raw const header, sets.as_mut_ptr()) };
    if read != 0 {
        return Err(io::Error::last_os_error());
    }
    for (set, first) in sets.iter_mut().zip([0, 32]) {
        let bits = kept
            .iter()
            .filter_map(|cap| cap.checked_sub(first))
            .filter(|&bit| bit < 32);
        set.permitted &= bits.fold(0, |mask, bit| mask | 1 << bit);
        set.effective = set.permitted;
        set.inheritable = 0;
    }
    // SAFETY: As above; the kernel only reads.
    let written = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
    if written == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::thread;

    use super::*;

    /// `CapEff` of the calling thread.
    fn effective() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    }

    #[test]
    fn a_thread_keeps_only_the_named_capabilities_and_others_keep_theirs() {
        let before = effective();
        let kept = [CAP_CHOWN, CAP_SETFCAP];
        let limited = thread::spawn(move || {
            limit_capabilities(&kept).unwrap();
            effective()
        });
        let mask = 1 << CAP_CHOWN | 1 << CAP_SETFCAP;
        assert_eq!(limited.join().unwrap(), before & mask);
        assert_eq!(effective(), before);
    }

    #[test]
    fn every_kind_of_thread_has_a_filter_that_compiles() {
        for kind in [
            ThreadKind::Vcpu,
            ThreadKind::Io,
            ThreadKind::Disk,
            ThreadKind::Fs,
            ThreadKind::Reset,
        ] {
            filter(&kind.rights()).unwrap_or_else(|error| panic!("{kind:?}: {error}"));
        }
    }

    /// Tells the test below that it is its own child.
    const CHILD: &str = "PODVISOR_TEST_FORBIDDEN_CALL";

    #[test]
    fn a_call_outside_of_the_filter_ends_the_process() {
        if std::env::var_os(CHILD).is_some() {
            let confined = thread::spawn(|| {
                enter(ThreadKind::Vcpu).unwrap();
                // SAFETY: The call has no arguments and no effect.
                unsafe { libc::getppid() }
            });
            let _ = confined.join();
            return;
        }
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args([
            "--exact",
            "confine::tests::a_call_outside_of_the_filter_ends_the_process",
        ]);
        let output = child.env(CHILD, "1").output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGSYS));
    }

    #[test]
    fn a_confined_loop_serves_and_ends() {
        drop(spawn_io_loop().unwrap());
    }
}
