//! Starting a process with clone3(2): straight into its cgroup and namespaces,
//! with a pidfd, then execve of the agent itself as a *stage*.

use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::{Pid, WaitOptions};

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
/// The stack of the helper that enters a user namespace; a few frames are on it.
const HELPER_STACK_LEN: usize = 64 << 10;
/// What a stack pointer is a multiple of (System V ABI).
const STACK_ALIGNMENT: usize = 16;

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
    /// New namespaces, made here; all others that the stage makes are its own.
    pub flags: u64,
    /// A process (pidfd) in whose user namespace it is born, which then owns the new ones; none
    /// for the agent's.
    pub user_namespace_of: Option<BorrowedFd<'a>>,
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
/// What clone3(2), setns(2) or the duplication of descriptors said.
pub fn spawn(request: &Spawn<'_>) -> io::Result<Spawned> {
    let moved = request
        .descriptors
        .iter()
        .map(|fd| Ok(rustix::io::fcntl_dupfd_cloexec(fd, FIRST_FREE_FD)?))
        .collect::<io::Result<Vec<OwnedFd>>>()?;
    let descriptors: Vec<RawFd> = moved.iter().map(AsRawFd::as_raw_fd).collect();
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
    let new_users = request.flags & flag(libc::CLONE_NEWUSER) != 0;
    let birth = Birth {
        program: request.program,
        stage: request.stage,
        descriptors: &descriptors,
        ids: match request.user_namespace_of {
            Some(_) => Ids::Mapped,
            None if new_users => Ids::MappedLater,
            None => Ids::Same,
        },
        arguments,
    };
    let pid = match request.user_namespace_of {
        Some(process) => birth.by_helper(process)?,
        None => birth.give()?,
    };
    // SAFETY: the kernel stored a new descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // A helper may have been born in another pid namespace and know it by another number.
    let pid = match request.user_namespace_of {
        Some(_) => pid_of(&pidfd)?,
        None => pid,
    };
    Ok(Spawned {
        pid: Pid::from_raw(pid).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?,
        pidfd,
    })
}

/// The number of a pidfd's process as the agent sees it (proc_pid_fdinfo(5)).
fn pid_of(pidfd: &OwnedFd) -> io::Result<i32> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    let pid = line.and_then(|pid| pid.trim().parse().ok());
    pid.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// A non-negative constant or descriptor as clone_args has it.
fn flag(value: i32) -> u64 {
    u64::from(value.unsigned_abs())
}

/// Who a stage is when it begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ids {
    /// The agent's user.
    Same,
    /// Root of a user namespace that has its maps.
    Mapped,
    /// Root of one whose maps are under way; a byte tells of them.
    MappedLater,
}

/// A stage about to be started.
struct Birth<'a> {
    program: &'static CStr,
    stage: &'static CStr,
    descriptors: &'a [RawFd],
    ids: Ids,
    arguments: libc::clone_args,
}

/// What a helper works with.
struct Errand<'a> {
    process: RawFd,
    birth: Birth<'a>,
    outcome: io::Result<i32>,
}

impl Birth<'_> {
    /// Makes the child; returns its pid to the caller only.
    fn give(&self) -> io::Result<i32> {
        // SAFETY: without CLONE_VM this is fork: the child has its own copy of the address space
        // and of the stack; the arguments outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw const self.arguments,
                size_of::<libc::clone_args>(),
            )
        };
        match result {
            -1 => Err(io::Error::last_os_error()),
            0 => self.become_stage(),
            pid => i32::try_from(pid).map_err(io::Error::other),
        }
    }

    /// Makes the child in the user namespace of `process`. Nobody can go there and come back, so
    /// a helper goes: a process that shares this one's memory and descriptors, while this one
    /// waits, and whose child is its sibling.
    fn by_helper(mut self, process: BorrowedFd<'_>) -> io::Result<i32> {
        self.arguments.flags |= flag(libc::CLONE_PARENT);
        // A sibling's signal is the helper's.
        self.arguments.exit_signal = 0;
        let mut stack = vec![0_u8; HELPER_STACK_LEN];
        let top = stack.as_mut_ptr_range().end;
        let top = top.wrapping_sub(top.addr() % STACK_ALIGNMENT);
        let mut errand = Errand {
            process: process.as_raw_fd(),
            birth: self,
            outcome: Err(io::ErrorKind::Other.into()),
        };
        // SAFETY: `run_errand` gets what it expects. With CLONE_VFORK this thread, the only one,
        // stands still until the helper has ended, so that stack and errand are the helper's alone;
        // it returns from its own function, never into this one.
        let helper = unsafe {
            libc::clone(
                run_errand,
                top.cast(),
                libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::SIGCHLD,
                (&raw mut errand).cast(),
            )
        };
        if helper == -1 {
            return Err(io::Error::last_os_error());
        }
        // The helper is this one's child like any other, but nobody else asks for it.
        while let Err(rustix::io::Errno::INTR) =
            rustix::process::waitpid(Pid::from_raw(helper), WaitOptions::empty())
        {}
        errand.outcome
    }

    /// The child: arranges descriptors and becomes the stage.
    fn become_stage(&self) -> ! {
        for (target, source) in (0..).zip(self.descriptors) {
            // SAFETY: plain system call on integers.
            unsafe { libc::dup2(*source, target) };
        }
        if self.ids == Ids::Mapped || (self.ids == Ids::MappedLater && are_mapped()) {
            // SAFETY: plain system calls on integers; the raw forms act on this only thread.
            unsafe { libc::syscall(libc::SYS_setresgid, 0, 0, 0) };
            // SAFETY: as above.
            unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) };
        }
        let argv = [self.program.as_ptr(), self.stage.as_ptr(), std::ptr::null()];
        let environment = [std::ptr::null()];
        // SAFETY: both vectors are NULL-terminated arrays of C strings that live here.
        unsafe { libc::execve(self.program.as_ptr(), argv.as_ptr(), environment.as_ptr()) };
        // SAFETY: ends this process without running anything of the parent's copy.
        unsafe { libc::_exit(127) }
    }
}

/// Waits for the word that ids are mapped.
fn are_mapped() -> bool {
    let mut byte = 0_u8;
    // SAFETY: reads at most one byte into a live local.
    let read = unsafe { libc::read(CONTROL_FD, (&raw mut byte).cast(), 1) };
    read == 1
}

/// The helper: joins the user namespace and makes the stage there.
extern "C" fn run_errand(errand: *mut c_void) -> c_int {
    // SAFETY: `by_helper` passes a live `Errand` and leaves it alone until this has ended.
    let errand = unsafe { &mut *errand.cast::<Errand<'_>>() };
    // SAFETY: plain system call on integers.
    let joined = unsafe { libc::setns(errand.process, libc::CLONE_NEWUSER) };
    errand.outcome = match joined {
        -1 => Err(io::Error::last_os_error()),
        _ => errand.birth.give(),
    };
    0
}
