//! KVM's in-kernel interrupt controllers, and the ways devices reach them: messages directly,
//! lines through event files.

use std::io;
use std::sync::Arc;

use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;
use podvisor_devices::interrupt::{IrqLine, MsiMessage, MsiRoute, MsiSink};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::layout;
use super::routing::MsiRoutes;

/// Makes local APICs, IOAPIC and PICs. There is no PIT: guests have the TSC deadline timer.
///
/// # Errors
/// What KVM says.
pub fn create(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "usize has 64 bits on this architecture"
    )]
    vm.set_tss_address(layout::KVM_TSS.base as usize)?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP.base)?;
    vm.create_irq_chip()
}

/// Sends messages by `KVM_SIGNAL_MSI`, which needs no routing table.
pub struct KvmMsi {
    vm: Arc<VmFd>,
    routes: Arc<MsiRoutes>,
}

impl KvmMsi {
    /// A sink for the machine `vm`.
    #[must_use]
    pub fn new(vm: Arc<VmFd>) -> Self {
        let routes = Arc::new(MsiRoutes::new(Arc::clone(&vm)));
        Self { vm, routes }
    }
}

impl MsiSink for KvmMsi {
    fn signal(&self, message: MsiMessage) -> io::Result<()> {
        let [low, high] = split(message.address);
        let msi = kvm_msi {
            address_lo: low,
            address_hi: high,
            data: message.data,
            ..kvm_msi::default()
        };
        self.vm.signal_msi(msi)?;
        Ok(())
    }

    fn route(&self) -> io::Result<Box<dyn MsiRoute>> {
        Ok(Box::new(self.routes.add()?))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the halves of a 64-bit address"
)]
pub(super) fn split(address: u64) -> [u32; 2] {
    [address as u32, (address >> 32) as u32]
}

/// A line of the IOAPIC behind an event file.
pub struct KvmLine {
    event: EventFd,
}

impl KvmLine {
    /// The line `gsi` of the machine `vm`.
    ///
    /// # Errors
    /// When the host has no event file or KVM refuses it.
    pub fn new(vm: &VmFd, gsi: u32) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        vm.register_irqfd(&event, gsi)?;
        Ok(Self { event })
    }
}

impl IrqLine for KvmLine {
    fn trigger(&self) -> io::Result<()> {
        self.event.write(1)
    }
}
