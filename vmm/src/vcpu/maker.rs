//! Makes processors, those that a machine begins with and those that are plugged.

use std::sync::Arc;

use kvm_ioctls::VmFd;
use thiserror::Error;

use super::cell::VcpuCell;
use super::stats::StatsError;
use crate::arch::cpuid::{CpuidError, Template};
use crate::arch::msrs;
use crate::arch::vcpu_state::{VcpuState, VcpuStateError};
use crate::processors::{CpuModel, Topology};

/// Why a processor could not be made.
#[derive(Debug, Error)]
pub enum MakeError {
    /// KVM refused a step.
    #[error("KVM refuses to {step}")]
    Kvm {
        /// Which step.
        step: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// CPUID could not be made.
    #[error("cannot describe the processor")]
    Cpuid(#[from] CpuidError),
    /// KVM's statistics are missing.
    #[error("cannot count exits")]
    Stats(#[from] StatsError),
    /// Its first state cannot be told.
    #[error("the processor's first state")]
    State(#[from] VcpuStateError),
}

fn refuses(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MakeError {
    move |source| MakeError::Kvm { step, source }
}

/// All that processors of one machine have in common.
pub(crate) struct VcpuMaker {
    pub(crate) vm: Arc<VmFd>,
    pub(crate) template: Template,
    pub(crate) topology: Topology,
    pub(crate) model: CpuModel,
    /// The registers that belong to the first state, in a machine that returns to it.
    pub(crate) power_on_msrs: Option<Vec<u32>>,
}

impl VcpuMaker {
    /// What a guest sees of its processors, for a saved state: model and topology.
    pub(crate) fn shape(&self) -> String {
        format!("{} {}", self.model, self.topology)
    }

    /// Makes the processor `index`; it waits for its startup message, unless it is the first.
    pub(crate) fn make(&self, index: u8) -> Result<VcpuCell, MakeError> {
        let apic_id = self.topology.apic_id(index);
        let vcpu = self.vm.create_vcpu(u64::from(apic_id));
        let vcpu = vcpu.map_err(refuses("create a vCPU"))?;
        let cpuid = self.template.for_vcpu(apic_id)?;
        vcpu.set_cpuid2(&cpuid).map_err(refuses("set CPUID"))?;
        msrs::set_boot_msrs(&vcpu).map_err(refuses("set MSRs"))?;
        let indices = self.power_on_msrs.as_ref();
        let power_on = indices.map(|indices| VcpuState::save_power_on(&vcpu, indices));
        Ok(VcpuCell::new(vcpu, power_on.transpose()?)?)
    }

    /// Makes the processor `index` of a machine whose guest runs. KVM looks interrupts' targets up in a
    /// map that it drew before the new processor was among the machine's (`kvm_recalculate_apic_map`,
    /// arch/x86/kvm/lapic.c); it draws another one when a local APIC's state is set. Otherwise the startup
    /// message is lost.
    pub(crate) fn make_late(&self, index: u8) -> Result<VcpuCell, MakeError> {
        let cell = self.make(index)?;
        let vcpu = cell.lock();
        let apic = vcpu.get_lapic().map_err(refuses("read a local APIC"))?;
        vcpu.set_lapic(&apic).map_err(refuses("set a local APIC"))?;
        drop(vcpu);
        Ok(cell)
    }
}
