//! Starting a process with clone3(2): straight into its cgroup and namespaces,
//! with a pidfd, then execve of the agent itself as a *stage*.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;

/// The agent's own file in a container pod's guest, on a mount that is read-only: a container
/// that finds a stage's /proc/PID/exe cannot write through it.
pub const INIT_SELF: &CStr = c"/init";
/// The agent's own file wherever it lies: in a machine.
pub const ANY_SELF: &CStr = c"/proc/self/exe";
/// CLONE_INTO_CGROUP (linux/sched.h); libc's constant does not fit its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// Descriptors are first moved above the ones that the stage expects.
const FIRST_FREE_FD: RawFd = 16;
/// The stage's descriptor on which it hears that its ids are mapped.
const CONTROL_FD: RawFd = 3;

/// What a stage is started with.
pub struct Spawn<'a> {
    /// The agent's own file.
    pub program: &'static CStr,
    /// First argument: which stage.
    pub stage: &'static CStr,
    /// Descriptors that become 0, 1, 2, … of the stage; the fourth is its control socket.
    pub descriptors: &'a [BorrowedFd<'a>],
    /// Cgroup to be born in; none for the agent's own.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// New namespaces: CLONE_NEWPID and CLONE_NEWUSER are made here.
    pub flags: u64,
}

/// A started stage.
pub struct Spawned {
    /// Its pid in the agent's namespace.
    pub pid: Pid,
    /// Stable handle of it.
    pub pidfd: OwnedFd,
}

/// Starts a stage. The agent is single-threaded, so the child may use the whole
/// address space until execve; it uses only system calls nevertheless.
///
/// With CLONE_NEWUSER the stage first waits for one byte on its control socket:
/// the caller writes the id maps, then the byte.
///
/// # Errors
///
/// What clone3(2) or the duplication of descriptors said.
pub fn spawn(request: &Spawn<'_>) -> io::Result<Spawned> {
    let moved = request
        .descriptors
        .iter()
        .map(|fd| Ok(rustix::io::fcntl_dupfd_cloexec(fd, FIRST_FREE_FD)?))
        .collect::<io::Result<Vec<OwnedFd>>>()?;
    let descriptors: Vec<RawFd> = moved.iter().map(AsRawFd::as_raw_fd).collect();
    let wait_for_maps = request.flags & flag(libc::CLONE_NEWUSER) != 0;
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data for which zeros are valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = request.flags | flag(libc::CLONE_PIDFD);
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = flag(libc::SIGCHLD);
    if let Some(cgroup) = request.cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = flag(cgroup.as_raw_fd());
    }
    // SAFETY: without CLONE_VM this is fork: the child has its own copy of the
    // address space and of the stack; `arguments` outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => become_stage(request, &descriptors, wait_for_maps),
        pid => {
            // SAFETY: the kernel stored a new descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            Ok(Spawned {
                pid: pid.ok_or_else(|| io::Error::from_raw_os_error(libc::EOVERFLOW))?,
                pidfd,
            })
        }
    }
}

/// A non-negative constant or descriptor as clone_args has it.
fn flag(value: i32) -> u64 {
    u64::from(value.unsigned_abs())
}

/// The child: arranges descriptors and becomes the stage.
fn become_stage(request: &Spawn<'_>, descriptors: &[RawFd], wait_for_maps: bool) -> ! {
    for (target, source) in (0..).zip(descriptors) {
        // SAFETY: plain system call on integers.
        unsafe { libc::dup2(*source, target) };
    }
    if wait_for_maps {
        let mut byte = 0_u8;
        // SAFETY: reads at most one byte into a live local.
        let read = unsafe { libc::read(CONTROL_FD, (&raw mut byte).cast(), 1) };
        if read == 1 {
            // SAFETY: plain system calls on integers; the raw forms act on this only thread.
            unsafe { libc::syscall(libc::SYS_setresgid, 0, 0, 0) };
            // SAFETY: as above.
            unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) };
        }
    }
    let Spawn { program, stage, .. } = request;
    let argv = [program.as_ptr(), stage.as_ptr(), std::ptr::null()];
    let environment = [std::ptr::null()];
    // SAFETY: both vectors are NULL-terminated arrays of C strings that live here.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), environment.as_ptr()) };
    // SAFETY: ends this process without running anything of the parent's copy.
    unsafe { libc::_exit(127) }
}
