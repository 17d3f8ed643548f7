//! What depends on the processor architecture. No other module names a register, a port, an
//! interrupt controller or a guest-physical address.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
