//! PCI as far as a virtio guest needs it: one bus with memory-mapped configuration, type 0
//! headers with one 64-bit memory BAR, and MSI-X.

pub mod config;
pub mod msix;
pub mod root;

pub use config::{Class, ConfigSpace, Identity};
pub use msix::{Msix, MsixState};
pub use root::{PciFunction, PciRoot, SlotError};
