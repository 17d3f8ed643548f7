//! The threads that run processors.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use kvm_ioctls::VcpuFd;
use podvisor_devices::console::Terminal;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::cell::VcpuCell;
use super::control::Control;
use super::pinning::{self, PinError};
use crate::confine::{self, ThreadKind};
use crate::event::{EndReason, EventSink, VmEvent};
use crate::exit::{Buses, Exit, Next, dispatch};
use crate::timeline::Timeline;

/// What a processor's thread works with.
pub(crate) struct VcpuContext {
    pub(crate) control: Arc<Control>,
    pub(crate) buses: Arc<Buses>,
    pub(crate) threads: Arc<VcpuThreads>,
    pub(crate) events: Arc<EventSink>,
    pub(crate) timeline: Arc<Timeline>,
    /// Its last output tells a panic from a reset.
    pub(crate) terminal: Terminal,
}

/// All processors' cells and threads: what it takes to interrupt them.
pub(crate) struct VcpuThreads {
    cells: Vec<VcpuCell>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

/// The signal that interrupts a processor; its handler does nothing.
fn kick_signal() -> i32 {
    SIGRTMIN()
}

extern "C" fn on_kick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Installs the handler of the signal that kicks processors. Any number of times.
///
/// # Errors
/// What the host says.
pub(crate) fn prepare_signal() -> io::Result<()> {
    register_signal_handler(kick_signal(), on_kick).map_err(io::Error::from)
}

impl VcpuThreads {
    pub(crate) fn new(cells: Vec<VcpuCell>) -> Self {
        Self {
            cells,
            handles: Mutex::new(Vec::new()),
        }
    }

    pub(crate) fn cells(&self) -> &[VcpuCell] {
        &self.cells
    }

    /// Starts a thread per processor; they park.
    pub(crate) fn spawn(context: VcpuContext) -> io::Result<()> {
        let threads = Arc::clone(&context.threads);
        let context = Arc::new(context);
        for index in 0..threads.cells.len() {
            let context = Arc::clone(&context);
            let name = format!("vcpu{index}");
            let spawned = thread::Builder::new()
                .name(name)
                .spawn(move || run_thread(&context, index));
            threads.lock_handles().push(spawned?);
        }
        Ok(())
    }

    fn lock_handles(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets every processor run on its own host CPU only, by `host_cpus`; those beyond the list
    /// run wherever this process may.
    pub(crate) fn pin(&self, host_cpus: &[usize]) -> Result<(), PinError> {
        for (vcpu, handle) in self.lock_handles().iter().enumerate() {
            // The lock keeps the threads from being joined.
            let thread = handle.as_pthread_t();
            let (cpu, done) = match host_cpus.get(vcpu) {
                Some(&cpu) => (cpu, pinning::bind(thread, cpu)),
                None => (0, pinning::release(thread)),
            };
            done.map_err(|source| PinError { vcpu, cpu, source })?;
        }
        Ok(())
    }

    /// Makes every processor leave guest mode soon, or not enter it at all.
    pub(crate) fn kick(&self) {
        for cell in &self.cells {
            cell.set_immediate_exit(true);
        }
        for handle in self.lock_handles().iter() {
            // SAFETY: The thread has not been joined (its handle is still here, under the
            // lock), so that its id is valid, and the signal has a handler.
            unsafe { libc::pthread_kill(handle.as_pthread_t(), kick_signal()) };
        }
    }

    /// Waits for all threads but the calling one.
    pub(crate) fn join(&self) {
        let handles = std::mem::take(&mut *self.lock_handles());
        for handle in handles {
            if handle.thread().id() != thread::current().id() {
                // A panic was caught and reported inside the thread.
                let _ = handle.join();
            }
        }
    }
}

fn run_thread(context: &VcpuContext, index: usize) {
    let run = || match confine::enter(ThreadKind::Vcpu) {
        Ok(()) => run_vcpu(context, index),
        Err(error) => Some(EndReason::KvmError {
            cause: error.to_string(),
        }),
    };
    let ended = catch_unwind(AssertUnwindSafe(run));
    let reason = ended.unwrap_or_else(|_| {
        Some(EndReason::ThreadPanicked {
            thread: format!("vcpu{index}"),
        })
    });
    if let Some(reason) = reason {
        context.control.order_end(reason);
        context.threads.kick();
    }
    let terminal = &context.terminal;
    let refine = |reason: EndReason| reason.classified(&terminal.log().boot_tail());
    if let Some(reason) = context.control.leave(refine) {
        terminal.close();
        (context.events)(VmEvent::Ended(reason));
    }
}

/// Runs the processor until the machine ends. `Some` when it is this processor that ends it.
fn run_vcpu(context: &VcpuContext, index: usize) -> Option<EndReason> {
    let cell = context.threads.cells.get(index)?;
    let mut is_first_entry = index == 0;
    while context.control.park() {
        // In this order: a kick that comes in between sets the flag again.
        cell.set_immediate_exit(false);
        if context.control.wants_attention() {
            continue;
        }
        if std::mem::take(&mut is_first_entry) {
            context.timeline.done("first_entry");
        }
        match run_until_attention(context, cell) {
            Next::Enter => {}
            Next::Reset(cause) => {
                context.control.order_reset(cause);
                context.threads.kick();
            }
            Next::End(reason) => return Some(reason),
        }
    }
    None
}

/// Enters the guest again and again. KVM finishes a port or memory access only at the next
/// entry, so that the one way out for a kicked processor is an entry that returns at once.
fn run_until_attention(context: &VcpuContext, cell: &VcpuCell) -> Next {
    let mut vcpu = cell.lock();
    loop {
        match vcpu.run() {
            Ok(exit) => {
                cell.count_user_exit();
                match dispatch(Exit::from(exit), &context.buses) {
                    Next::Enter => {}
                    Next::Reset(cause) => return Next::Reset(cause),
                    Next::End(reason) => return Next::End(located(reason, &vcpu)),
                }
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                // In this order: a kick that comes in between sets the flag again.
                cell.set_immediate_exit(false);
                if context.control.wants_attention() {
                    return Next::Enter;
                }
            }
            Err(error) => {
                return Next::End(EndReason::KvmError {
                    cause: error.to_string(),
                });
            }
        }
    }
}

/// Adds to KVM's errors where in the guest they happened.
fn located(reason: EndReason, vcpu: &VcpuFd) -> EndReason {
    match (reason, vcpu.get_regs()) {
        (EndReason::KvmError { cause }, Ok(regs)) => EndReason::KvmError {
            cause: format!("{cause} at instruction {:#x}", regs.rip),
        },
        (other, _) => other,
    }
}
