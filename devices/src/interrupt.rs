//! How devices reach the guest's interrupt controllers, without knowing which there are.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

/// A message-signalled interrupt: a write of `data` to `address` (PCI 3.0, 6.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiMessage {
    /// Where the write goes; on x86 it selects the target local APICs.
    pub address: u64,
    /// What is written; on x86 it carries vector and delivery mode.
    pub data: u32,
}

/// Delivers message-signalled interrupts. Called from any thread.
pub trait MsiSink: Send + Sync {
    /// Sends one interrupt.
    ///
    /// # Errors
    /// When the hypervisor refuses the message, which a guest can provoke by programming a
    /// nonsensical address: callers count it and go on.
    fn signal(&self, message: MsiMessage) -> io::Result<()>;

    /// A way for messages that leads around this process. It has no message yet.
    ///
    /// # Errors
    /// When the hypervisor has no such ways, or no more of them.
    fn route(&self) -> io::Result<Box<dyn MsiRoute>>;
}

/// An event file whose writes the hypervisor turns into a message.
pub trait MsiRoute: Send {
    /// What is to be written; it stays the same.
    fn event(&self) -> &Arc<EventFd>;

    /// Sets the message; without one, what is written is lost.
    ///
    /// # Errors
    /// When the hypervisor refuses the message, as [`MsiSink::signal`]: the old one may be gone.
    fn set(&self, message: Option<MsiMessage>) -> io::Result<()>;
}

/// An edge-triggered interrupt line of a device that is not on PCI.
pub trait IrqLine: Send + Sync {
    /// Raises the line once.
    ///
    /// # Errors
    /// When the hypervisor's event file cannot be written.
    fn trigger(&self) -> io::Result<()>;
}
