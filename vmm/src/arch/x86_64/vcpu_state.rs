//! A processor's whole state as a message: KVM's own structures, whose layout its ABI fixes.

use kvm_bindings::{
    kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::msrs;

/// Why a processor's state cannot be saved or restored.
#[derive(Debug, Error)]
pub enum VcpuStateError {
    /// KVM refuses a part.
    #[error("KVM refuses the {part}")]
    Kvm {
        /// Which part.
        part: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// A part has not the size of KVM's structure.
    #[error("the {0} have a wrong size")]
    Size(&'static str),
}

/// One model-specific register.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct MsrState {
    /// Its number.
    #[prost(uint32, tag = "1")]
    pub index: u32,
    /// Its value.
    #[prost(uint64, tag = "2")]
    pub data: u64,
}

/// One processor; each byte field is the KVM structure of its name.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct VcpuState {
    /// `kvm_mp_state`.
    #[prost(bytes = "vec", tag = "1")]
    pub mp_state: Vec<u8>,
    /// `kvm_regs`.
    #[prost(bytes = "vec", tag = "2")]
    pub regs: Vec<u8>,
    /// `kvm_sregs`.
    #[prost(bytes = "vec", tag = "3")]
    pub sregs: Vec<u8>,
    /// `kvm_xsave`.
    #[prost(bytes = "vec", tag = "4")]
    pub xsave: Vec<u8>,
    /// `kvm_xcrs`.
    #[prost(bytes = "vec", tag = "5")]
    pub xcrs: Vec<u8>,
    /// `kvm_debugregs`.
    #[prost(bytes = "vec", tag = "6")]
    pub debug_regs: Vec<u8>,
    /// `kvm_lapic_state`.
    #[prost(bytes = "vec", tag = "7")]
    pub lapic: Vec<u8>,
    /// `kvm_vcpu_events`.
    #[prost(bytes = "vec", tag = "8")]
    pub events: Vec<u8>,
    /// Model-specific registers in the order in which they are written.
    #[prost(message, repeated, tag = "9")]
    pub msrs: Vec<MsrState>,
}

fn refuses(part: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VcpuStateError {
    move |source| VcpuStateError::Kvm { part, source }
}

/// KVM's structure as bytes.
pub(super) fn to_bytes<T: IntoBytes + Immutable>(value: &T) -> Vec<u8> {
    value.as_bytes().to_vec()
}

/// KVM's structure from bytes, if there are as many as it has.
pub(super) fn from_bytes<T: FromBytes>(
    bytes: &[u8],
    part: &'static str,
) -> Result<T, VcpuStateError> {
    T::read_from_bytes(bytes).map_err(|_| VcpuStateError::Size(part))
}

impl VcpuState {
    /// Reads the state of a processor that is not running. `msr_indices` are the registers that
    /// KVM counts as state.
    ///
    /// # Errors
    /// [`VcpuStateError::Kvm`] names the part that KVM does not give.
    pub fn save(vcpu: &VcpuFd, msr_indices: &[u32]) -> Result<Self, VcpuStateError> {
        // The run state first: reading it makes KVM take in pending startup messages.
        let mp_state = vcpu.get_mp_state().map_err(refuses("run state"))?;
        let mut msrs = msrs::get(vcpu, msr_indices).map_err(refuses("MSRs"))?;
        // An armed deadline counts from the time stamp counter and the APIC's timer mode.
        msrs.sort_by_key(|msr| msr.index == msrs::TSC_DEADLINE);
        Ok(Self {
            mp_state: to_bytes(&mp_state),
            regs: to_bytes(&vcpu.get_regs().map_err(refuses("registers"))?),
            sregs: to_bytes(&vcpu.get_sregs().map_err(refuses("segments"))?),
            xsave: to_bytes(&vcpu.get_xsave().map_err(refuses("extended state"))?),
            xcrs: to_bytes(
                &vcpu
                    .get_xcrs()
                    .map_err(refuses("extended control registers"))?,
            ),
            debug_regs: to_bytes(&vcpu.get_debug_regs().map_err(refuses("debug registers"))?),
            lapic: to_bytes(&vcpu.get_lapic().map_err(refuses("local APIC"))?),
            events: to_bytes(&vcpu.get_vcpu_events().map_err(refuses("pending events"))?),
            msrs: msrs
                .iter()
                .map(|msr| MsrState {
                    index: msr.index,
                    data: msr.data,
                })
                .collect(),
        })
    }

    /// As [`Self::save`], of a processor that has never run, for [`Self::restore_used`].
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn save_power_on(vcpu: &VcpuFd, msr_indices: &[u32]) -> Result<Self, VcpuStateError> {
        let mut state = Self::save(vcpu, msr_indices)?;
        for msr in &mut state.msrs {
            if msr.index == msrs::TSC {
                // KVM takes this value as "in step with the other processors".
                msr.data = 0;
            }
        }
        Ok(state)
    }

    /// Puts the state into a processor that has run and is parked.
    ///
    /// # Errors
    /// As [`Self::restore`].
    pub fn restore_used(&self, vcpu: &VcpuFd) -> Result<(), VcpuStateError> {
        // Reading it makes KVM take in startup messages that would arrive afterwards otherwise.
        vcpu.get_mp_state().map_err(refuses("run state"))?;
        self.restore(vcpu)
    }

    /// Puts the state into a new processor with the same CPUID.
    ///
    /// # Errors
    /// [`VcpuStateError`] names the part that is malformed or that KVM does not take.
    pub fn restore(&self, vcpu: &VcpuFd) -> Result<(), VcpuStateError> {
        let mp_state: kvm_mp_state = from_bytes(&self.mp_state, "run state")?;
        vcpu.set_mp_state(mp_state).map_err(refuses("run state"))?;
        let regs: kvm_regs = from_bytes(&self.regs, "registers")?;
        vcpu.set_regs(&regs).map_err(refuses("registers"))?;
        let sregs: kvm_sregs = from_bytes(&self.sregs, "segments")?;
        vcpu.set_sregs(&sregs).map_err(refuses("segments"))?;
        let xsave: kvm_xsave = from_bytes(&self.xsave, "extended state")?;
        // SAFETY: KVM reads more than `kvm_xsave` only for features that a process must ask
        // for (`ARCH_REQ_XCOMP_GUEST_PERM`); this one never does.
        unsafe { vcpu.set_xsave(&xsave) }.map_err(refuses("extended state"))?;
        let xcrs: kvm_xcrs = from_bytes(&self.xcrs, "extended control registers")?;
        vcpu.set_xcrs(&xcrs)
            .map_err(refuses("extended control registers"))?;
        let debug_regs: kvm_debugregs = from_bytes(&self.debug_regs, "debug registers")?;
        vcpu.set_debug_regs(&debug_regs)
            .map_err(refuses("debug registers"))?;
        let lapic: kvm_lapic_state = from_bytes(&self.lapic, "local APIC")?;
        vcpu.set_lapic(&lapic).map_err(refuses("local APIC"))?;
        let entry = |msr: &MsrState| kvm_msr_entry {
            index: msr.index,
            data: msr.data,
            reserved: 0,
        };
        let msrs: Vec<_> = self.msrs.iter().map(entry).collect();
        msrs::restore(vcpu, &msrs).map_err(refuses("MSRs"))?;
        let events: kvm_vcpu_events = from_bytes(&self.events, "pending events")?;
        vcpu.set_vcpu_events(&events)
            .map_err(refuses("pending events"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_structures_survive_the_way_through_bytes() {
        let regs = kvm_regs {
            rip: 0x100_0000,
            rsi: 0x7000,
            rflags: 2,
            ..kvm_regs::default()
        };
        let bytes = to_bytes(&regs);
        assert_eq!(from_bytes::<kvm_regs>(&bytes, "registers").unwrap(), regs);
    }

    #[test]
    fn a_structure_of_another_size_is_refused() {
        let bytes = to_bytes(&kvm_regs::default());
        let error = from_bytes::<kvm_regs>(&bytes[1..], "registers").unwrap_err();
        assert!(matches!(error, VcpuStateError::Size("registers")));
    }
}
