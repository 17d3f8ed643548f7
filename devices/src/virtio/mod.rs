//! Virtio (OASIS virtio 1.2): what a device is, its queues, its PCI transport, and the devices.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod console;
pub mod device;
pub mod mem;
pub mod pci;
pub mod rng;
pub mod serve;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use self::balloon::{Balloon, BalloonConfig, BalloonControl};
pub use self::block::{Block, BlockConfig, BlockMetrics, BlockSerial, FailureListener, RateLimits};
pub use self::console::{
    ConsoleConfig, ConsoleControl, ConsoleError, ConsolePort, PortName, VirtioConsole,
};
pub use self::device::{
    ActivateError, Activation, DeviceType, QueueHandle, Reset, VirtioDevice, VirtioInterrupt,
};
pub use self::mem::{Mem, MemControl, MemRegion};
pub use self::pci::VirtioPciDevice;
pub use self::rng::{Rng, RngConfig};
