//! What a machine has beside its processors: interrupt controllers and the clock.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::VmFd;

use super::vcpu_state::{VcpuStateError, from_bytes, to_bytes};

const CHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];
const CHIP: &str = "interrupt controllers";
const CLOCK: &str = "clock";

/// The machine's shared parts; each byte field is the KVM structure of its name.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct VmState {
    /// `kvm_irqchip` of both PICs and the IOAPIC.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub irqchips: Vec<Vec<u8>>,
    /// The paravirtual clock in nanoseconds.
    #[prost(uint64, tag = "2")]
    pub clock_ns: u64,
}

fn refuses(part: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VcpuStateError {
    move |source| VcpuStateError::Kvm { part, source }
}

impl VmState {
    /// Reads the state of a machine whose processors do not run.
    ///
    /// # Errors
    /// [`VcpuStateError::Kvm`] names the part that KVM does not give.
    pub fn save(vm: &VmFd) -> Result<Self, VcpuStateError> {
        let mut irqchips = Vec::with_capacity(CHIPS.len());
        for chip_id in CHIPS {
            let mut chip = kvm_irqchip {
                chip_id,
                ..kvm_irqchip::default()
            };
            vm.get_irqchip(&mut chip).map_err(refuses(CHIP))?;
            irqchips.push(to_bytes(&chip));
        }
        let clock_ns = vm.get_clock().map_err(refuses(CLOCK))?.clock;
        Ok(Self { irqchips, clock_ns })
    }

    /// Puts the state into a new machine: the guest's clock goes on where it stood.
    ///
    /// # Errors
    /// [`VcpuStateError`] names the part that is malformed or that KVM does not take.
    pub fn restore(&self, vm: &VmFd) -> Result<(), VcpuStateError> {
        let clock = kvm_clock_data {
            clock: self.clock_ns,
            ..kvm_clock_data::default()
        };
        vm.set_clock(&clock).map_err(refuses(CLOCK))?;
        if self.irqchips.len() != CHIPS.len() {
            return Err(VcpuStateError::Size(CHIP));
        }
        for (bytes, chip_id) in self.irqchips.iter().zip(CHIPS) {
            let chip: kvm_irqchip = from_bytes(bytes, CHIP)?;
            if chip.chip_id != chip_id {
                return Err(VcpuStateError::Size(CHIP));
            }
            vm.set_irqchip(&chip).map_err(refuses(CHIP))?;
        }
        Ok(())
    }
}
