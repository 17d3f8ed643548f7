//! The threads that run processors.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use kvm_ioctls::VcpuFd;
use podvisor_devices::console::Terminal;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::cell::VcpuCell;
use super::control::Control;
use super::seats::VcpuThreads;
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

/// The signal that interrupts a processor; its handler does nothing.
pub(super) fn kick_signal() -> i32 {
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

/// Starts the thread of the processor `index`, which parks.
pub(super) fn spawn(context: &Arc<VcpuContext>, index: usize) -> io::Result<JoinHandle<()>> {
    let context = Arc::clone(context);
    let builder = thread::Builder::new().name(format!("vcpu{index}"));
    builder.spawn(move || run_thread(&context, index))
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

/// Runs the processor until the machine ends or does without it. `Some` when it is this processor that ends it.
fn run_vcpu(context: &VcpuContext, index: usize) -> Option<EndReason> {
    let cell = context.threads.cell(index)?;
    let mut is_first_entry = index == 0;
    while context.control.park() && !cell.is_retired() {
        // In this order: a kick that comes in between sets the flag again.
        cell.set_immediate_exit(false);
        if context.control.wants_attention() || cell.is_retired() {
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
                if context.control.wants_attention() || cell.is_retired() {
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
