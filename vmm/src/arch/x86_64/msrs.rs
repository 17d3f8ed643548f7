//! Model-specific registers: the few that a processor starts with, and those that belong to its
//! saved state.

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

/// `IA32_TSC_DEADLINE`: when the local APIC's timer fires.
pub(super) const TSC_DEADLINE: u32 = 0x6e0;
/// `IA32_TIME_STAMP_COUNTER`.
pub(super) const TSC: u32 = 0x10;
/// `IA32_MISC_ENABLE` (Intel SDM vol. 4, table 2-2).
const MISC_ENABLE: u32 = 0x1a0;
/// Fast strings; Linux leaves string instructions unused without.
const MISC_ENABLE_FAST_STRING: u64 = 1 << 0;

/// Sets the registers that differ from KVM's reset state. KVM knows `IA32_MISC_ENABLE` for all
/// vendors.
///
/// # Errors
/// What KVM says.
pub fn set_boot_msrs(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let fast_strings = kvm_msr_entry {
        index: MISC_ENABLE,
        data: MISC_ENABLE_FAST_STRING,
        ..Default::default()
    };
    set(vcpu, &[fast_strings])
}

/// Writes `entries`, in order, in as many calls as KVM needs.
///
/// # Errors
/// What KVM says; `EINVAL` when it does not take one of them.
pub fn set(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), kvm_ioctls::Error> {
    for chunk in entries.chunks(KVM_MAX_MSR_ENTRIES) {
        let msrs = Msrs::from_entries(chunk).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        if vcpu.set_msrs(&msrs)? != chunk.len() {
            return Err(kvm_ioctls::Error::new(libc::EINVAL));
        }
    }
    Ok(())
}

/// Writes `entries` of a saved state, in order. A register that KVM gives out but does not take
/// back is no loss when it was zero.
///
/// # Errors
/// What KVM says; `EINVAL` when it does not take one with a value.
pub fn restore(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), kvm_ioctls::Error> {
    let mut rest = entries;
    while !rest.is_empty() {
        let (chunk, _) = rest.split_at(rest.len().min(KVM_MAX_MSR_ENTRIES));
        let msrs = Msrs::from_entries(chunk).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        let count = vcpu.set_msrs(&msrs)?;
        let done = match chunk.get(count) {
            None => count,
            Some(refused) if refused.data == 0 => count + 1,
            Some(_) => return Err(kvm_ioctls::Error::new(libc::EINVAL)),
        };
        rest = rest.get(done..).unwrap_or_default();
    }
    Ok(())
}

/// Reads the registers `indices`; those that KVM does not let go for this guest are left out.
///
/// # Errors
/// What KVM says.
pub fn get(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, kvm_ioctls::Error> {
    let mut found = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let (chunk, _) = rest.split_at(rest.len().min(KVM_MAX_MSR_ENTRIES));
        let wanted: Vec<_> = chunk
            .iter()
            .map(|&index| kvm_msr_entry {
                index,
                ..Default::default()
            })
            .collect();
        let mut msrs =
            Msrs::from_entries(&wanted).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        let count = vcpu.get_msrs(&mut msrs)?;
        found.extend(msrs.as_slice().iter().take(count));
        // KVM stops at the first that it refuses: step over it.
        let done = if count < chunk.len() {
            count + 1
        } else {
            count
        };
        rest = rest.get(done..).unwrap_or_default();
    }
    Ok(found)
}

/// The registers that make up a processor's state, as KVM lists them.
///
/// # Errors
/// What KVM says.
pub fn saved_indices(kvm: &Kvm) -> Result<Vec<u32>, kvm_ioctls::Error> {
    Ok(kvm.get_msr_index_list()?.as_slice().to_vec())
}
