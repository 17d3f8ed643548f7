//! Starts a machine over in place: the same threads, files and devices, everything in them as at
//! power-on.
//!
//! Processors cannot do it, for their threads may open no file: one more thread waits for it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use kvm_ioctls::VmFd;
use thiserror::Error;

use crate::arch::vcpu_state::VcpuStateError;
use crate::arch::vm_state::VmState;
use crate::boot::BootSource;
use crate::confine::{self, ThreadKind};
use crate::event::{EndReason, EventSink, RestartCause, VmEvent};
use crate::machine::{StartError, set_entry};
use crate::memory::{GuestRam, MemoryError};
use crate::pci::PciDevices;
use crate::platform::Platform;
use crate::vcpu::{Control, VcpuCell, VcpuThreads};

const THREAD: &str = "reset";

/// Why a machine could not be started over.
#[derive(Debug, Error)]
enum RestartError {
    /// KVM refuses the state of power-on.
    #[error("cannot reset the processors")]
    State(#[from] VcpuStateError),
    /// Memory keeps its content.
    #[error("cannot empty guest memory")]
    Memory(#[from] MemoryError),
    /// The guest cannot be loaded again.
    #[error("cannot load the guest again")]
    Boot(#[from] StartError),
}

/// What processors share, as KVM makes it; each keeps its own first state.
pub(crate) struct PowerOn {
    shared: VmState,
}

impl PowerOn {
    /// The state of a machine that was just made.
    pub(crate) fn of(vm: &VmFd) -> Result<Self, PowerOnError> {
        Ok(Self {
            shared: VmState::save(vm)?,
        })
    }

    /// Puts a machine whose processors are parked back into it.
    fn restore(&self, vm: &VmFd, cells: &[&VcpuCell]) -> Result<(), VcpuStateError> {
        for cell in cells {
            if let Some(state) = cell.power_on() {
                state.restore_used(&cell.lock())?;
            }
        }
        self.shared.restore(vm)
    }
}

/// Why the state of power-on cannot be told.
#[derive(Debug, Error)]
pub enum PowerOnError {
    /// KVM does not give a part.
    #[error("the processors' first state")]
    State(#[from] VcpuStateError),
}

/// What a reset works on.
pub(crate) struct Restarter {
    pub(crate) control: Arc<Control>,
    pub(crate) threads: Arc<VcpuThreads>,
    pub(crate) events: Arc<EventSink>,
    pub(crate) pci: Arc<PciDevices>,
    pub(crate) platform: Arc<Platform>,
    pub(crate) source: BootSource,
    pub(crate) power_on: PowerOn,
    pub(crate) count: Arc<AtomicU64>,
    // In this order: KVM's use of the memory ends first.
    pub(crate) vm: Arc<VmFd>,
    pub(crate) ram: GuestRam,
}

/// The thread that waits for resets; [`Self::join`] after the machine was told to end.
pub(crate) struct RestartThread(Mutex<Option<JoinHandle<()>>>);

impl RestartThread {
    /// Starts it.
    pub(crate) fn spawn(restarter: Restarter) -> io::Result<Self> {
        let builder = thread::Builder::new().name(THREAD.to_owned());
        let handle = builder.spawn(move || restarter.run_thread())?;
        Ok(Self(Mutex::new(Some(handle))))
    }

    /// Waits for its end, unless it is the calling one.
    pub(crate) fn join(&self) {
        let handle = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(handle) = handle
            && handle.thread().id() != thread::current().id()
        {
            // A panic was caught and reported inside the thread.
            let _ = handle.join();
        }
    }
}

impl Restarter {
    fn run_thread(self) {
        let run = || match confine::enter(ThreadKind::Reset) {
            Ok(()) => self.serve(),
            Err(error) => self.end(EndReason::RestartFailed {
                cause: error.to_string(),
            }),
        };
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            self.end(EndReason::ThreadPanicked {
                thread: THREAD.to_owned(),
            });
        }
        let terminal = self.platform.terminal();
        let refine = |reason: EndReason| reason.classified(&terminal.log().boot_tail());
        if let Some(reason) = self.control.leave_resetter(refine) {
            terminal.close();
            (self.events)(VmEvent::Ended(reason));
        }
    }

    fn serve(&self) {
        while let Some(cause) = self.control.wait_reset() {
            let console = self.platform.console();
            let reason = EndReason::from(cause).classified(&console.boot_tail());
            if let EndReason::GuestPanic { .. } = reason {
                self.end(reason);
            } else if let Err(error) = self.restart(cause) {
                let cause = chain(&error);
                self.end(EndReason::RestartFailed { cause });
            }
        }
    }

    fn end(&self, reason: EndReason) {
        self.control.order_end(reason);
        self.threads.kick();
    }

    /// With all processors parked. Devices let go of memory first, then KVM does (it writes to
    /// where the guest has wanted its clocks), and then memory is changed.
    fn restart(&self, cause: RestartCause) -> Result<(), RestartError> {
        self.pci.power_on();
        self.platform.power_on();
        let cells = self.threads.cells();
        self.power_on.restore(&self.vm, &cells)?;
        self.ram.clear()?;
        let entry = self.source.load(&self.ram, self.platform.cpus())?;
        set_entry(&cells, entry)?;
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::info!(?cause, count, "the guest starts over");
        // In this order: who hears of it may want another reset at once. The machine's end is
        // told later in any case, for this thread has not left.
        self.control.reset_done();
        (self.events)(VmEvent::Restarted { cause, count });
        Ok(())
    }
}

/// An error with all its sources, for an event that has room for a text only.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
