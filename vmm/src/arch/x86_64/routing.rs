//! KVM's table of interrupt routes: the lines that its controllers begin with, and messages
//! behind event files.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use podvisor_devices::interrupt::{MsiMessage, MsiRoute};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::irqchip::split;

/// Lines of the IOAPIC. Messages have the numbers (GSIs) from here on.
const IOAPIC_LINES: u32 = 24;
/// Lines of one of the two PICs.
const PIC_LINES: u32 = 8;

/// The messages of one machine's event files.
pub struct MsiRoutes {
    vm: Arc<VmFd>,
    messages: Mutex<Messages>,
}

#[derive(Default)]
struct Messages {
    given: u32,
    by_gsi: BTreeMap<u32, MsiMessage>,
}

impl MsiRoutes {
    /// None yet, for the machine `vm`.
    #[must_use]
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            messages: Mutex::default(),
        }
    }

    /// A new event file behind which there is no message yet.
    ///
    /// # Errors
    /// When the host has no event file or KVM refuses it.
    pub fn add(self: &Arc<Self>) -> io::Result<KvmRoute> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let gsi = {
            let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
            messages.given += 1;
            IOAPIC_LINES + messages.given - 1
        };
        self.vm.register_irqfd(&event, gsi)?;
        Ok(KvmRoute {
            routes: Arc::clone(self),
            gsi,
            event: Arc::new(event),
        })
    }

    fn set(&self, gsi: u32, message: Option<MsiMessage>) -> io::Result<()> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        match message {
            Some(message) => messages.by_gsi.insert(gsi, message),
            None => messages.by_gsi.remove(&gsi),
        };
        // KVM takes the table as a whole.
        let mut entries = line_entries();
        entries.extend(
            messages
                .by_gsi
                .iter()
                .map(|(&gsi, &message)| msi_entry(gsi, message)),
        );
        let table = KvmIrqRouting::from_entries(&entries).map_err(io::Error::other)?;
        Ok(self.vm.set_gsi_routing(&table)?)
    }
}

/// An event file that KVM turns into a message.
pub struct KvmRoute {
    routes: Arc<MsiRoutes>,
    gsi: u32,
    event: Arc<EventFd>,
}

impl MsiRoute for KvmRoute {
    fn event(&self) -> &Arc<EventFd> {
        &self.event
    }

    fn set(&self, message: Option<MsiMessage>) -> io::Result<()> {
        self.routes.set(self.gsi, message)
    }
}

/// The routes that `KVM_CREATE_IRQCHIP` makes: every line goes to the IOAPIC, the first 16 to
/// the PICs as well.
fn line_entries() -> Vec<kvm_irq_routing_entry> {
    let mut entries = Vec::new();
    for line in 0..IOAPIC_LINES {
        let pic = match line / PIC_LINES {
            0 => Some(KVM_IRQCHIP_PIC_MASTER),
            1 => Some(KVM_IRQCHIP_PIC_SLAVE),
            _ => None,
        };
        entries.extend(pic.map(|pic| line_entry(line, pic, line % PIC_LINES)));
        entries.push(line_entry(line, KVM_IRQCHIP_IOAPIC, line));
    }
    entries
}

fn line_entry(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..kvm_irq_routing_entry::default()
    };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    entry
}

fn msi_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let [address_lo, address_hi] = split(message.address);
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..kvm_irq_routing_entry::default()
    };
    entry.u.msi = kvm_irq_routing_msi {
        address_lo,
        address_hi,
        data: message.data,
        ..kvm_irq_routing_msi::default()
    };
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_to_the_controllers_they_begin_with() {
        let entries = line_entries();
        assert_eq!(entries.len(), 24 + 16);
        let of = |gsi| {
            let chips = entries.iter().filter(move |entry| entry.gsi == gsi);
            let chips = chips.map(|entry| {
                // SAFETY: `line_entry` has written this member.
                let chip = unsafe { entry.u.irqchip };
                (chip.irqchip, chip.pin)
            });
            chips.collect::<Vec<_>>()
        };
        assert_eq!(
            of(4),
            [(KVM_IRQCHIP_PIC_MASTER, 4), (KVM_IRQCHIP_IOAPIC, 4)]
        );
        assert_eq!(
            of(15),
            [(KVM_IRQCHIP_PIC_SLAVE, 7), (KVM_IRQCHIP_IOAPIC, 15)]
        );
        assert_eq!(of(23), [(KVM_IRQCHIP_IOAPIC, 23)]);
    }
}
