//! PCI as far as our devices need it: one bus with memory-mapped configuration, type 0
//! headers with one 64-bit memory BAR, and MSI-X.

pub mod config;
pub mod device;
pub mod msix;
pub mod root;

pub use config::{Class, ConfigSpace, Identity};
pub use device::PciDevice;
pub use msix::{Msix, MsixState};
pub use root::{PciFunction, PciRoot, SlotError};
