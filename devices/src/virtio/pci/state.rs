//! The saved state of a virtio PCI device: a versioned message.

use prost::Message as _;
use thiserror::Error;

use crate::pci::MsixState;

/// Version of the messages below, and of the register layout they describe.
pub const VERSION: u32 = 1;

/// Why a state cannot be saved or restored.
#[derive(Debug, Error)]
pub enum StateError {
    /// The device serves its queues: it has to be paused first.
    #[error("the device is running")]
    Running,
    /// The bytes are no message.
    #[error("the state cannot be decoded")]
    Decode(#[from] prost::DecodeError),
    /// A later release wrote it.
    #[error("state version {0} is not known")]
    Version(u32),
    /// It does not belong to a device like this one.
    #[error("the state's {0} does not fit this device")]
    Mismatch(&'static str),
    /// A queue of it cannot be served.
    #[error("queue {index} cannot be restored")]
    Queue {
        /// The queue's index.
        index: usize,
        /// What is wrong with it.
        source: super::queue::QueueError,
    },
}

/// One queue's registers and position.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct QueueState {
    /// Chosen size.
    #[prost(uint32, tag = "1")]
    pub size: u32,
    /// Whether the driver enabled it.
    #[prost(bool, tag = "2")]
    pub enabled: bool,
    /// MSI-X vector.
    #[prost(uint32, tag = "3")]
    pub vector: u32,
    /// Guest-physical address of the descriptor table.
    #[prost(uint64, tag = "4")]
    pub descriptors: u64,
    /// Guest-physical address of the available ring.
    #[prost(uint64, tag = "5")]
    pub available: u64,
    /// Guest-physical address of the used ring.
    #[prost(uint64, tag = "6")]
    pub used: u64,
    /// Next entry of the available ring.
    #[prost(uint32, tag = "7")]
    pub next_avail: u32,
    /// Next entry of the used ring.
    #[prost(uint32, tag = "8")]
    pub next_used: u32,
}

/// The transport's registers and the device's own state.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct VirtioPciState {
    /// [`VERSION`].
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Virtio device type.
    #[prost(uint32, tag = "2")]
    pub device_type: u32,
    /// The PCI configuration space.
    #[prost(bytes = "vec", tag = "3")]
    pub config: Vec<u8>,
    /// Device status without `DEVICE_NEEDS_RESET`.
    #[prost(uint32, tag = "4")]
    pub status: u32,
    /// Whether the device needs a reset.
    #[prost(bool, tag = "5")]
    pub needs_reset: bool,
    /// Accepted features.
    #[prost(fixed64, tag = "6")]
    pub driver_features: u64,
    /// Selector of offered features.
    #[prost(uint32, tag = "7")]
    pub device_feature_select: u32,
    /// Selector of accepted features.
    #[prost(uint32, tag = "8")]
    pub driver_feature_select: u32,
    /// Selected queue.
    #[prost(uint32, tag = "9")]
    pub queue_select: u32,
    /// Interrupt status.
    #[prost(uint32, tag = "10")]
    pub isr: u32,
    /// Configuration generation.
    #[prost(uint32, tag = "11")]
    pub generation: u32,
    /// MSI-X vector of configuration changes.
    #[prost(uint32, tag = "12")]
    pub config_vector: u32,
    /// The queues, by index.
    #[prost(message, repeated, tag = "13")]
    pub queues: Vec<QueueState>,
    /// The MSI-X table.
    #[prost(message, optional, tag = "14")]
    pub msix: Option<MsixState>,
    /// What the device itself saved.
    #[prost(bytes = "vec", tag = "15")]
    pub device: Vec<u8>,
}

impl VirtioPciState {
    /// Decodes a state of a known version.
    ///
    /// # Errors
    /// [`StateError::Decode`] and [`StateError::Version`].
    pub fn parse(bytes: &[u8]) -> Result<Self, StateError> {
        let state = Self::decode(bytes)?;
        if state.version == VERSION {
            Ok(state)
        } else {
            Err(StateError::Version(state.version))
        }
    }
}

/// A field that came as a wider integer than the register it is for.
pub fn narrow<T: TryFrom<u32>>(value: u32, field: &'static str) -> Result<T, StateError> {
    T::try_from(value).map_err(|_| StateError::Mismatch(field))
}
