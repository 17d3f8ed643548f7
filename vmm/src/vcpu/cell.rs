//! One processor's KVM handle, and the flag that makes it leave guest mode.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VcpuFd;

use super::stats::{ExitCounter, StatsError};
use crate::arch::vcpu_state::VcpuState;

/// A processor. Its thread holds the lock while it runs; when it is parked, others may look.
pub(crate) struct VcpuCell {
    fd: Mutex<VcpuFd>,
    immediate_exit: ImmediateExit,
    exits: ExitCounter,
    user_exits: AtomicU64,
    /// Its first state, in a machine that returns to it.
    power_on: Option<VcpuState>,
    /// Set when its thread shall end although the machine goes on.
    retired: AtomicBool,
}

/// Points to `kvm_run.immediate_exit` in the page that KVM shares with this process.
struct ImmediateExit(*const AtomicU8);

// SAFETY: The pointee is an atomic byte in a mapping that belongs to the `VcpuFd` of the same
// `VcpuCell`; the cell drops both together and never gives the pointer away.
unsafe impl Send for ImmediateExit {}
// SAFETY: As above; atomics may be used from several threads.
unsafe impl Sync for ImmediateExit {}

impl VcpuCell {
    /// Wraps a processor.
    ///
    /// # Errors
    /// When KVM offers no exit count.
    pub(super) fn new(mut fd: VcpuFd, power_on: Option<VcpuState>) -> Result<Self, StatsError> {
        let exits = ExitCounter::open(&fd)?;
        let flag = &raw mut fd.get_kvm_run().immediate_exit;
        let immediate_exit = ImmediateExit(flag.cast::<AtomicU8>().cast_const());
        Ok(Self {
            fd: Mutex::new(fd),
            immediate_exit,
            exits,
            user_exits: AtomicU64::new(0),
            power_on,
            retired: AtomicBool::new(false),
        })
    }

    /// The processor itself; waits for its thread to park.
    pub(crate) fn lock(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the next entry shall return at once.
    pub(crate) fn set_immediate_exit(&self, on: bool) {
        // SAFETY: The byte lies in the mapping owned by `self.fd`, alive as long as `self`;
        // KVM only reads it.
        let flag = unsafe { &*self.immediate_exit.0 };
        flag.store(u8::from(on), Ordering::SeqCst);
    }

    /// Its first state, in a machine that returns to it.
    pub(crate) fn power_on(&self) -> Option<&VcpuState> {
        self.power_on.as_ref()
    }

    /// Whether its thread shall end although the machine goes on.
    pub(super) fn set_retired(&self, on: bool) {
        self.retired.store(on, Ordering::SeqCst);
    }

    /// See [`Self::set_retired`].
    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    /// Tells a guest with a paravirtual clock that it stood still, lest its watchdogs bark. The
    /// processor must be parked.
    pub(crate) fn excuse_pause(&self) {
        // A guest that has not set up such a clock has no watchdog on it either.
        let _ = self.lock().kvmclock_ctrl();
    }

    /// Notes one return from guest mode to this process.
    pub(crate) fn count_user_exit(&self) {
        self.user_exits.fetch_add(1, Ordering::Relaxed);
    }

    /// Exits so far: all, and those that reached this process.
    pub(crate) fn exits(&self) -> Result<(u64, u64), StatsError> {
        Ok((self.exits.read()?, self.user_exits.load(Ordering::Relaxed)))
    }
}
