//! Who made the processor: the one thing of it that no other can stand in for, since vendors
//! differ in instructions that kernels use.

use kvm_bindings::kvm_cpuid_entry2;

use super::leaf;

/// Whose rules a processor follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vendor {
    Intel,
    Amd,
}

impl Vendor {
    /// By the name in leaf 0. Unknown vendors build after one of these; none is left that
    /// virtualizes and follows neither.
    pub(super) fn of(entries: &[kvm_cpuid_entry2]) -> Option<Self> {
        let entry = entries.iter().find(|e| e.function == leaf::MAX)?;
        let name = [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes);
        match name.as_flattened() {
            b"AuthenticAMD" | b"HygonGenuine" => Some(Self::Amd),
            b"GenuineIntel" | b"CentaurHauls" | b"  Shanghai  " => Some(Self::Intel),
            _ => None,
        }
    }
}
