//! Numbers of CPUID's leaves (Intel SDM vol. 2, CPUID; AMD APM vol. 3, appendix E).

/// Highest basic leaf, vendor.
pub(super) const MAX: u32 = 0x0;
pub(super) const FEATURES: u32 = 0x1;
pub(super) const CACHES: u32 = 0x4;
pub(super) const POWER: u32 = 0x6;
pub(super) const EXTENDED_FEATURES: u32 = 0x7;
pub(super) const PERFORMANCE: u32 = 0xa;
pub(super) const TOPOLOGY: u32 = 0xb;
/// Extended state.
pub(super) const STATE: u32 = 0xd;
pub(super) const TOPOLOGY_V2: u32 = 0x1f;
/// Highest of KVM's leaves, its signature (Documentation/virt/kvm/x86/cpuid.rst).
pub(super) const KVM_MAX: u32 = 0x4000_0000;
pub(super) const KVM_FEATURES: u32 = 0x4000_0001;
/// Highest extended leaf, vendor.
pub(super) const EXTENDED_MAX: u32 = 0x8000_0000;
pub(super) const AMD_FEATURES: u32 = 0x8000_0001;
/// The first of three that hold the processor's name.
pub(super) const BRAND: u32 = 0x8000_0002;
pub(super) const AMD_SIZES: u32 = 0x8000_0008;
pub(super) const AMD_SVM: u32 = 0x8000_000a;
pub(super) const AMD_CACHES: u32 = 0x8000_001d;
pub(super) const AMD_TOPOLOGY: u32 = 0x8000_001e;
pub(super) const AMD_PERFORMANCE: u32 = 0x8000_0022;
pub(super) const AMD_TOPOLOGY_V2: u32 = 0x8000_0026;
