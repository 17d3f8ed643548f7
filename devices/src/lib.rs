//! Virtio devices with their PCI transport, and the few legacy devices a Linux guest needs.
//!
//! This crate knows guest memory and queues. It knows no KVM and no async runtime: whoever
//! builds the machine hands in [`interrupt`] sinks and places devices on a [`bus`].

pub mod bus;
pub mod console;
pub mod event_loop;
pub mod fs;
pub mod interrupt;
pub mod legacy;
pub mod net;
pub mod pci;
pub mod virtio;
pub mod vsock;
pub mod watchdog;

use std::sync::Arc;

/// The guest's memory, mapped once for the life of the machine and shared by all devices.
pub type GuestMemory = Arc<vm_memory::GuestMemoryMmap<()>>;
