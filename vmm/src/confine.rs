//! What each kind of thread may do: no capability, and only the system calls it needs. Threads
//! share an address space, so that this is defence in depth and no boundary.

use std::io;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use thiserror::Error;

/// A thread with its own rights. A filtered thread never spawns another: the new one would
/// inherit its filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs a processor, and device registers on its exits.
    Vcpu,
    /// Runs the loop that serves devices.
    Io,
}

/// Why a thread could not be confined.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// The kernel keeps the capabilities.
    #[error("cannot drop capabilities")]
    Capabilities(#[source] io::Error),
    /// The filter cannot be built or installed.
    #[error("cannot install the system call filter")]
    Filter(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What every thread of Rust's runtime and the C library's allocator does.
const RUNTIME: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_fcntl,
    libc::SYS_getrandom,
];

/// Beyond [`RUNTIME`]: `KVM_RUN` and messages, and taking devices on and off the loop when a
/// driver activates or resets them.
const VCPU: &[i64] = &[libc::SYS_ioctl, libc::SYS_epoll_ctl, libc::SYS_eventfd2];

/// Beyond [`RUNTIME`]: waiting, sockets and taps.
const IO: &[i64] = &[
    libc::SYS_ioctl,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_timerfd_settime,
];

/// Takes every right from the calling thread that its kind does not need.
///
/// # Errors
/// [`ConfineError`] when the kernel does not let it; the thread must then not go on.
pub fn enter(kind: ThreadKind) -> Result<(), ConfineError> {
    drop_capabilities().map_err(ConfineError::Capabilities)?;
    let filter = filter(kind).map_err(|e| ConfineError::Filter(Box::new(e)))?;
    seccompiler::apply_filter(&filter).map_err(|e| ConfineError::Filter(Box::new(e)))
}

fn filter(kind: ThreadKind) -> Result<BpfProgram, seccompiler::BackendError> {
    let own = match kind {
        ThreadKind::Vcpu => VCPU,
        ThreadKind::Io => IO,
    };
    let rules = RUNTIME.iter().chain(own).map(|&call| (call, Vec::new())).collect();
    // A call outside of the list is an attack or a defect; either way the pod ends, and what
    // it leaves behind is cleaned up as after any other death of this process.
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?
        .try_into()
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

/// Empties the calling thread's capability sets. The raw call acts on one thread; the C
/// library has no other.
fn drop_capabilities() -> io::Result<()> {
    let header = CapHeader { version: CAPABILITY_VERSION, pid: 0 };
    let none = [CapData { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: Header and data have the layout of version 3, which is two data elements; the
    // kernel only reads them.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
