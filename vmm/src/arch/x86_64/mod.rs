//! x86_64: the memory map, the entry into Linux, the processors' first state, ACPI tables and
//! the interrupt controllers.

pub mod acpi;
pub mod boot_params;
pub mod cpuid;
pub mod entry;
pub mod irqchip;
pub mod layout;
pub mod loader;
pub mod msrs;
pub mod routing;
pub mod vcpu_state;
pub mod vm_state;

/// What the kernel calls this architecture's system calls (`AUDIT_ARCH_X86_64`, linux/audit.h).
pub const AUDIT_ARCH: u32 = 0xc000_003e;
