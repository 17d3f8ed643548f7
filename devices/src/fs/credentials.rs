//! Who a worker thread is while it creates files for a guest's process.
//!
//! User and group of a system call are a thread's own for the kernel; the C library spreads them
//! over all threads, so they are set by raw system calls here. A thread keeps its capabilities
//! whoever it is (`SECBIT_NO_SETUID_FIXUP`): whether a process may do what it asks for is
//! decided in the guest, which knows its supplementary groups and capabilities and the host does
//! not. All that the switch decides is to whom a new file belongs.

use std::cell::{Cell, OnceCell};
use std::io;

use fuse_backend_rs::api::filesystem::Context;
use rustix::fs::Mode;
use rustix::process::{Gid, Uid, getegid, geteuid, umask};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, UnshareFlags, capabilities,
    capabilities_secure_bits, set_capabilities, set_capabilities_secure_bits, set_thread_res_gid,
    set_thread_res_uid, unshare_unsafe,
};

/// What this module knows about its thread.
struct Thread {
    /// The user and group the thread has been started with.
    own: (u32, u32),
    /// Those it has now.
    current: Cell<(u32, u32)>,
    /// The file mode creation mask it has now.
    mask: Cell<u32>,
    /// Its capabilities, read when first needed: whoever runs the thread may take some away
    /// after it was prepared.
    capabilities: OnceCell<CapabilitySets>,
}

thread_local! {
    static THREAD: OnceCell<Thread> = const { OnceCell::new() };
}

impl Thread {
    fn prepare() -> io::Result<Self> {
        let bits = capabilities_secure_bits()? | CapabilitiesSecureBits::NO_SETUID_FIXUP;
        set_capabilities_secure_bits(bits)?;
        // SAFETY: CLONE_FS takes a copy of root, working directory and mask for this thread and
        // touches neither memory nor descriptors.
        unsafe { unshare_unsafe(UnshareFlags::FS) }?;
        umask(Mode::empty());
        let own = (geteuid().as_raw(), getegid().as_raw());
        Ok(Self {
            own,
            current: Cell::new(own),
            mask: Cell::new(0),
            capabilities: OnceCell::new(),
        })
    }

    fn become_owner(&self, (uid, gid): (u32, u32)) -> io::Result<()> {
        let (current_uid, current_gid) = self.current.get();
        if gid != current_gid {
            set_thread_res_gid(None, Gid::from_raw(gid), None)?;
            self.current.set((current_uid, gid));
        }
        if uid != current_uid {
            set_thread_res_uid(None, Uid::from_raw(uid), None)?;
            self.current.set((uid, gid));
        }
        Ok(())
    }

    fn capabilities(&self) -> io::Result<CapabilitySets> {
        if let Some(known) = self.capabilities.get() {
            return Ok(*known);
        }
        let read = capabilities(None)?;
        Ok(*self.capabilities.get_or_init(|| read))
    }

    fn set_mask(&self, mask: u32) {
        if self.mask.replace(mask) != mask {
            umask(Mode::from_raw_mode(mask));
        }
    }
}

fn with_thread<T>(work: impl FnOnce(&Thread) -> io::Result<T>) -> io::Result<T> {
    THREAD.with(|cell| {
        if cell.get().is_none() {
            // A second value cannot be there: nothing in between runs on this thread.
            let _ = cell.set(Thread::prepare()?);
        }
        cell.get()
            .map_or_else(|| Err(io::ErrorKind::Other.into()), work)
    })
}

/// Makes the calling thread fit for the other functions here, which else do it when first used:
/// it gets a file mode creation mask of its own and keeps its capabilities as another user.
///
/// # Errors
/// Those of prctl(2) and unshare(2); it takes `CAP_SETPCAP`.
pub(super) fn prepare_thread() -> io::Result<()> {
    with_thread(|_| Ok(()))
}

/// Runs `create` so that what it creates belongs to the caller, with the caller's mask, which the
/// host applies unless the directory has a default access control list.
///
/// # Errors
/// `EINVAL` for a user or group that is none; else those of `create`.
pub(super) fn as_caller<T>(
    caller: &Context,
    mask: u32,
    create: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    if caller.uid == u32::MAX || caller.gid == u32::MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    with_thread(|thread| {
        thread.set_mask(mask & 0o777);
        let result = thread
            .become_owner((caller.uid, caller.gid))
            .and_then(|()| create());
        // Should this fail, the next creation tries again; until then the thread has the same
        // rights under another name.
        let _ = thread.become_owner(thread.own);
        result
    })
}

/// Runs `write` such that the host takes set-user-ID and set-group-ID off what it writes, as it
/// does for a writer who is not privileged.
///
/// # Errors
/// Those of capset(2) and of `write`.
pub(super) fn without_fsetid<T>(write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    with_thread(|thread| {
        let all = thread.capabilities()?;
        let mut fewer = all;
        fewer.effective.remove(CapabilitySet::FSETID);
        set_capabilities(None, fewer)?;
        let result = write();
        set_capabilities(None, all)?;
        result
    })
}
