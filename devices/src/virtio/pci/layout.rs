//! Where the parts of a virtio PCI device lie in its one BAR, and the capabilities that tell
//! a driver so (virtio 1.2, 4.1.4).

use crate::pci::config::ConfigSpace;

/// Length of the BAR in bytes.
pub const BAR_LEN: u64 = 0x8000;
/// Bytes between the notification addresses of two queues.
pub const NOTIFY_STRIDE: u32 = 4;
/// Where the notification addresses begin.
pub const NOTIFY: u64 = 0x3000;

const PART_LEN: u64 = 0x1000;
const COMMON: u64 = 0x0000;
const COMMON_LEN: u64 = 0x38;
const ISR: u64 = 0x1000;
const ISR_LEN: u64 = 1;
const DEVICE: u64 = 0x2000;
/// Offset of the MSI-X table.
pub const MSIX_TABLE: u32 = 0x4000;
/// Offset of the MSI-X pending bits.
pub const MSIX_PENDING: u32 = 0x5000;

/// Most queues of one device: each has a vector, one more is for configuration changes, and
/// the vector table has one part of the BAR.
pub const MAX_QUEUES: u16 = 255;

const _: () = assert!((MAX_QUEUES as u64 + 1) * crate::pci::msix::ENTRY_LEN <= PART_LEN);
const _: () = assert!(MAX_QUEUES as u64 * NOTIFY_STRIDE as u64 <= PART_LEN);
const _: () = assert!(MSIX_PENDING as u64 + PART_LEN <= BAR_LEN);

const VENDOR_CAPABILITY: u8 = 0x09;
const CFG_TYPE_COMMON: u8 = 1;
const CFG_TYPE_NOTIFY: u8 = 2;
const CFG_TYPE_ISR: u8 = 3;
const CFG_TYPE_DEVICE: u8 = 4;
const CFG_TYPE_PCI: u8 = 5;

/// A part of the BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The common configuration structure.
    Common,
    /// The interrupt status byte.
    Isr,
    /// The device-specific configuration.
    Device,
    /// The notification addresses.
    Notify,
    /// The MSI-X table.
    MsixTable,
    /// The MSI-X pending bits.
    MsixPending,
}

/// The part that an access of `len` bytes at `offset` of the BAR lies in, and its offset
/// there.
pub fn find(offset: u64, len: usize) -> Option<(Part, u64)> {
    let part = match offset & !(PART_LEN - 1) {
        COMMON => Part::Common,
        ISR => Part::Isr,
        DEVICE => Part::Device,
        NOTIFY => Part::Notify,
        0x4000 => Part::MsixTable,
        0x5000 => Part::MsixPending,
        _ => return None,
    };
    let offset = offset % PART_LEN;
    let end = offset.checked_add(u64::try_from(len).ok()?)?;
    (end <= PART_LEN).then_some((part, offset))
}

/// Adds the virtio capabilities and returns the offset of the one that gives access to the
/// BAR through configuration space; `None` when the space is full.
pub fn add_capabilities(config: &mut ConfigSpace, queues: u16) -> Option<u8> {
    let notify_len = u64::from(queues) * u64::from(NOTIFY_STRIDE);
    config.add_capability(
        VENDOR_CAPABILITY,
        &body(CFG_TYPE_COMMON, COMMON, COMMON_LEN),
        &[],
    )?;
    config.add_capability(VENDOR_CAPABILITY, &body(CFG_TYPE_ISR, ISR, ISR_LEN), &[])?;
    config.add_capability(
        VENDOR_CAPABILITY,
        &body(CFG_TYPE_DEVICE, DEVICE, PART_LEN),
        &[],
    )?;
    let notify = with_word(body(CFG_TYPE_NOTIFY, NOTIFY, notify_len), NOTIFY_STRIDE);
    config.add_capability(VENDOR_CAPABILITY, &notify, &[])?;
    let access = with_word(body(CFG_TYPE_PCI, 0, 0), 0);
    // The driver chooses bar, offset and length; the data word is not memory.
    let writable = [
        0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    ];
    config.add_capability(VENDOR_CAPABILITY, &access, &writable)
}

/// `struct virtio_pci_cap` without its first two bytes.
fn body(cfg_type: u8, offset: u64, len: u64) -> [u8; 14] {
    let [o0, o1, o2, o3, ..] = offset.to_le_bytes();
    let [l0, l1, l2, l3, ..] = len.to_le_bytes();
    let cap_len = if matches!(cfg_type, CFG_TYPE_NOTIFY | CFG_TYPE_PCI) {
        20
    } else {
        16
    };
    [
        cap_len, cfg_type, 0, 0, 0, 0, o0, o1, o2, o3, l0, l1, l2, l3,
    ]
}

fn with_word(body: [u8; 14], word: u32) -> [u8; 18] {
    let mut longer = [0; 18];
    for (to, from) in longer
        .iter_mut()
        .zip(body.into_iter().chain(word.to_le_bytes()))
    {
        *to = from;
    }
    longer
}

/// The access capability (virtio 1.2, 4.1.4.9) as the driver has set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Offset in the BAR.
    pub offset: u64,
    /// Length of the access in bytes: 1, 2 or 4.
    pub len: usize,
}

impl Access {
    /// Distance of the data word from the capability.
    pub const DATA: u16 = 16;

    /// What the capability at `at` asks for; `None` when it names no part of the BAR.
    pub fn of(config: &ConfigSpace, at: u8) -> Option<Self> {
        let [bar, ..] = config.read_u32(at + 4).to_le_bytes();
        let offset = u64::from(config.read_u32(at + 8));
        let len = usize::try_from(config.read_u32(at + 12)).ok()?;
        let aligned = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len as u64);
        (bar == 0 && aligned).then_some(Self { offset, len })
    }
}
