//! The common configuration structure and the driver's way through the device status
//! (virtio 1.2, 4.1.4.3 and 2.1).

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::interrupt::PciInterrupt;
use super::queue::QueueConfig;

/// What the transport does for every device.
pub const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

const ACKNOWLEDGE: u8 = 1 << 0;
const DRIVER: u8 = 1 << 1;
/// The driver is ready.
pub const DRIVER_OK: u8 = 1 << 2;
const FEATURES_OK: u8 = 1 << 3;
const NEEDS_RESET: u8 = 1 << 6;
const FAILED: u8 = 1 << 7;

/// Offsets of the fields of `struct virtio_pci_common_cfg`.
mod field {
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const DEVICE_STATUS: u64 = 0x14;
    pub const CONFIG_GENERATION: u64 = 0x15;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x34;
}

/// What a write asks the transport to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The driver wrote 0 to the status.
    Reset,
    /// The driver set `DRIVER_OK`.
    Start,
}

/// The registers, apart from those that device threads touch ([`PciInterrupt`]).
#[derive(Debug)]
pub struct CommonConfig {
    /// What the device offers.
    pub device_features: u64,
    /// What the driver accepted.
    pub driver_features: u64,
    /// Which half of `device_features` is visible.
    pub device_feature_select: u32,
    /// Which half of `driver_features` is visible.
    pub driver_feature_select: u32,
    /// Which queue's registers are visible.
    pub queue_select: u16,
    /// The status without `DEVICE_NEEDS_RESET`.
    pub status: u8,
    /// The queues.
    pub queues: Vec<QueueConfig>,
}

impl CommonConfig {
    /// The registers of a device that offers `device_features` besides the transport's own,
    /// with queues of these sizes.
    pub fn new(device_features: u64, queue_max_sizes: &[u16]) -> Self {
        Self {
            device_features: device_features | TRANSPORT_FEATURES,
            driver_features: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            status: 0,
            queues: queue_max_sizes
                .iter()
                .map(|&size| QueueConfig::new(size))
                .collect(),
        }
    }

    /// Back to how a device comes up.
    pub fn reset(&mut self) {
        self.driver_features = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        self.status = 0;
        for queue in &mut self.queues {
            *queue = QueueConfig::new(queue.max_size);
        }
    }

    /// The device serves no more until its driver resets it.
    pub fn stop(&mut self) {
        self.status &= !DRIVER_OK;
    }

    /// Whether `feature` (a bit number) was negotiated.
    pub fn has_feature(&self, feature: u32) -> bool {
        self.driver_features >> feature & 1 == 1
    }

    /// Reads a field with an access of its own width, or one half of a 64-bit one; any
    /// other access reads zero.
    pub fn read(&self, offset: u64, data: &mut [u8], interrupt: &PciInterrupt) {
        data.fill(0);
        let queue = self.queues.get(usize::from(self.queue_select));
        let value = match (offset, data.len()) {
            (field::DEVICE_FEATURE_SELECT, 4) => u64::from(self.device_feature_select),
            (field::DEVICE_FEATURE, 4) => half(self.device_features, self.device_feature_select),
            (field::DRIVER_FEATURE_SELECT, 4) => u64::from(self.driver_feature_select),
            (field::DRIVER_FEATURE, 4) => half(self.driver_features, self.driver_feature_select),
            (field::CONFIG_MSIX_VECTOR, 2) => u64::from(interrupt.config_vector()),
            (field::NUM_QUEUES, 2) => self.queues.len() as u64,
            (field::DEVICE_STATUS, 1) => u64::from(self.visible_status(interrupt)),
            (field::CONFIG_GENERATION, 1) => u64::from(interrupt.generation()),
            (field::QUEUE_SELECT, 2) => u64::from(self.queue_select),
            (field::QUEUE_SIZE, 2) => queue.map_or(0, |queue| queue.size.into()),
            (field::QUEUE_MSIX_VECTOR, 2) => u64::from(interrupt.queue_vector(self.queue_select)),
            (field::QUEUE_ENABLE, 2) => queue.map_or(0, |queue| queue.enabled.into()),
            (field::QUEUE_NOTIFY_OFF, 2) => u64::from(self.queue_select),
            (field::QUEUE_DESC..=field::QUEUE_DEVICE_HIGH, 4 | 8) => {
                queue.map_or(0, |queue| read_address(queue, offset, data.len()))
            }
            _ => return,
        };
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = value;
        }
    }

    /// Writes a field with an access of its own width, or one half of a 64-bit one; any
    /// other access is ignored, as is a field that cannot change in the present status.
    pub fn write(&mut self, offset: u64, data: &[u8], interrupt: &PciInterrupt) -> Option<Request> {
        let mut bytes = [0; 8];
        for (byte, value) in bytes.iter_mut().zip(data) {
            *byte = *value;
        }
        let wide = u64::from_le_bytes(bytes);
        let [b0, b1, b2, b3, ..] = bytes;
        let word = u32::from_le_bytes([b0, b1, b2, b3]);
        let short = u16::from_le_bytes([b0, b1]);
        match (offset, data.len()) {
            (field::DEVICE_FEATURE_SELECT, 4) => self.device_feature_select = word,
            (field::DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select = word,
            (field::DRIVER_FEATURE, 4) => self.accept_features(word),
            (field::CONFIG_MSIX_VECTOR, 2) => interrupt.set_config_vector(short),
            (field::DEVICE_STATUS, 1) => return self.set_status(b0),
            (field::QUEUE_SELECT, 2) => self.queue_select = short,
            (field::QUEUE_MSIX_VECTOR, 2) => interrupt.set_queue_vector(self.queue_select, short),
            (offset, len) => self.write_queue(offset, len, wide, short),
        }
        None
    }

    fn visible_status(&self, interrupt: &PciInterrupt) -> u8 {
        self.status
            | if interrupt.is_broken() {
                NEEDS_RESET
            } else {
                0
            }
    }

    fn accept_features(&mut self, word: u32) {
        if self.status & FEATURES_OK != 0 {
            return;
        }
        let word = u64::from(word);
        match self.driver_feature_select {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | word,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | word << 32,
            _ => {}
        }
    }

    /// The driver only ever adds bits, one step at a time, or resets.
    fn set_status(&mut self, new: u8) -> Option<Request> {
        if new == 0 {
            return Some(Request::Reset);
        }
        let added = new & !self.status;
        self.status |= added & (ACKNOWLEDGE | DRIVER | FAILED);
        if added & FEATURES_OK != 0 && self.status & DRIVER != 0 && self.features_are_ours() {
            self.status |= FEATURES_OK;
        }
        if added & DRIVER_OK != 0 && self.status & FEATURES_OK != 0 {
            self.status |= DRIVER_OK;
            return Some(Request::Start);
        }
        None
    }

    /// A device of this transport has no legacy interface: `VIRTIO_F_VERSION_1` is a must.
    fn features_are_ours(&self) -> bool {
        self.driver_features & !self.device_features == 0 && self.has_feature(VIRTIO_F_VERSION_1)
    }

    fn write_queue(&mut self, offset: u64, len: usize, wide: u64, short: u16) {
        let running = self.status & DRIVER_OK != 0;
        let queue = self.queues.get_mut(usize::from(self.queue_select));
        // Rings belong to the device once they are enabled.
        let Some(queue) = queue.filter(|queue| !running && !queue.enabled) else {
            return;
        };
        match (offset, len) {
            (field::QUEUE_SIZE, 2) => queue.choose_size(short),
            (field::QUEUE_ENABLE, 2) => queue.enabled = short == 1,
            (field::QUEUE_DESC..=field::QUEUE_DEVICE_HIGH, 4 | 8) => {
                write_address(queue, offset, len, wide);
            }
            _ => {}
        }
    }
}

fn half(features: u64, select: u32) -> u64 {
    match select {
        0 => features & 0xffff_ffff,
        1 => features >> 32,
        _ => 0,
    }
}

/// The 64-bit address field at `offset` and by how many bits a half of it is shifted.
fn address_field(queue: &mut QueueConfig, offset: u64) -> Option<(&mut u64, u32)> {
    let field = match offset & !7 {
        field::QUEUE_DESC => &mut queue.descriptors,
        field::QUEUE_DRIVER => &mut queue.available,
        field::QUEUE_DEVICE => &mut queue.used,
        _ => return None,
    };
    match offset % 8 {
        0 => Some((field, 0)),
        4 => Some((field, 32)),
        _ => None,
    }
}

fn read_address(queue: &QueueConfig, offset: u64, len: usize) -> u64 {
    let mut queue = *queue;
    match address_field(&mut queue, offset) {
        Some((address, 0)) if len == 8 => *address,
        Some((address, shift)) if len == 4 => *address >> shift & 0xffff_ffff,
        _ => 0,
    }
}

fn write_address(queue: &mut QueueConfig, offset: u64, len: usize, value: u64) {
    match address_field(queue, offset) {
        Some((address, 0)) if len == 8 => *address = value,
        Some((address, shift)) if len == 4 => {
            *address = *address & !(0xffff_ffff << shift) | value << shift;
        }
        _ => {}
    }
}
