//! The configuration space of one function: a type 0 header and a list of capabilities
//! (PCI Local Bus Specification 3.0, chapter 6).
//!
//! Each byte has a mask of the bits a guest can write. That alone makes BAR sizing work: the
//! address bits below the BAR's length are not writable, so a write of all ones reads back
//! as the length. A BAR is assigned by whoever builds the machine and decodes at that address
//! only: a guest that programs another one switches the BAR off until it programs it back.

/// Length of the space in bytes. Nothing here has extended capabilities, so the rest of a
/// function's 4 KiB in the memory-mapped window reads as zero.
pub const CONFIG_LEN: usize = 256;

const VENDOR_ID: usize = 0x00;
const DEVICE_ID: usize = 0x02;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS_INTERFACE: usize = 0x09;
const CLASS_SUB: usize = 0x0a;
const CLASS_BASE: usize = 0x0b;
const CACHE_LINE_SIZE: usize = 0x0c;
const BAR0: usize = 0x10;
const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
const SUBSYSTEM_ID: usize = 0x2e;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Memory space, 64 bits wide, not prefetchable.
const BAR_MEMORY_64: u64 = 0b0100;
const BAR_FLAGS: u64 = 0b1111;

const FIRST_CAPABILITY: u8 = 0x40;

/// What kind of function this is (PCI 3.0, appendix D).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// Base class.
    pub base: u8,
    /// Sub-class.
    pub sub: u8,
    /// Programming interface.
    pub interface: u8,
}

/// The numbers by which a driver finds its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor, assigned by the PCI SIG.
    pub vendor: u16,
    /// Device, assigned by the vendor.
    pub device: u16,
    /// Revision of the device.
    pub revision: u8,
    /// Kind of function.
    pub class: Class,
    /// Vendor of the board.
    pub subsystem_vendor: u16,
    /// The board.
    pub subsystem: u16,
}

/// The registers of one function.
pub struct ConfigSpace {
    bytes: [u8; CONFIG_LEN],
    writable: [u8; CONFIG_LEN],
    bar: Option<u64>,
    next_capability: u8,
    last_link: usize,
}

impl ConfigSpace {
    /// A header without BARs and capabilities, memory decoding and bus mastering off.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let mut config = Self {
            bytes: [0; CONFIG_LEN],
            writable: [0; CONFIG_LEN],
            bar: None,
            next_capability: FIRST_CAPABILITY,
            last_link: CAPABILITIES,
        };
        let class = identity.class;
        config.set(VENDOR_ID, &identity.vendor.to_le_bytes());
        config.set(DEVICE_ID, &identity.device.to_le_bytes());
        config.set(REVISION, &[identity.revision]);
        config.set(CLASS_INTERFACE, &[class.interface]);
        config.set(CLASS_SUB, &[class.sub]);
        config.set(CLASS_BASE, &[class.base]);
        config.set(
            SUBSYSTEM_VENDOR_ID,
            &identity.subsystem_vendor.to_le_bytes(),
        );
        config.set(SUBSYSTEM_ID, &identity.subsystem.to_le_bytes());
        config.allow(
            COMMAND,
            &(COMMAND_MEMORY | COMMAND_BUS_MASTER).to_le_bytes(),
        );
        // These two are memory for software; the device has no use for them.
        config.allow(CACHE_LINE_SIZE, &[0xff]);
        config.allow(INTERRUPT_LINE, &[0xff]);
        config
    }

    /// Makes BARs 0 and 1 one 64-bit memory BAR of `len` bytes, assigned to `address`.
    ///
    /// `len` is a power of two of at least 16 bytes and `address` a multiple of it.
    pub fn set_bar(&mut self, address: u64, len: u64) {
        debug_assert!(len.is_power_of_two() && len > BAR_FLAGS && address.is_multiple_of(len));
        self.bar = Some(address);
        self.set(BAR0, &(address | BAR_MEMORY_64).to_le_bytes());
        self.allow(BAR0, &(!(len - 1)).to_le_bytes());
    }

    /// Appends a capability: its `id`, then `body` from the third byte on, of which the bits
    /// in `writable` can be written. Returns its offset, `None` when there is no room left.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Option<u8> {
        let offset = self.next_capability;
        let at = usize::from(offset);
        let len = (body.len() + 2).next_multiple_of(4);
        let end = at + len;
        if end > CONFIG_LEN || writable.len() > body.len() {
            return None;
        }
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        self.set(self.last_link, &[offset]);
        self.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.last_link = at + 1;
        // A list that ends with the space leaves no offset for another capability.
        self.next_capability = u8::try_from(end).unwrap_or(u8::MAX);
        Some(offset)
    }

    /// Reads registers; what lies beyond the space is zero.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (position, byte) in (usize::from(offset)..).zip(data) {
            *byte = self.bytes.get(position).copied().unwrap_or(0);
        }
    }

    /// Writes the writable bits of registers.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (position, new) in (usize::from(offset)..).zip(data) {
            if let Some(byte) = self.bytes.get_mut(position)
                && let Some(mask) = self.writable.get(position)
            {
                *byte = *byte & !mask | new & mask;
            }
        }
    }

    /// Back to how the function came up: everything that can be written is zero, but for the BAR,
    /// which holds its own address.
    pub fn reset(&mut self) {
        for (byte, mask) in self.bytes.iter_mut().zip(self.writable) {
            *byte &= !mask;
        }
        if let Some(address) = self.bar {
            self.set(BAR0, &(address | BAR_MEMORY_64).to_le_bytes());
        }
    }

    /// Whether the BAR answers: memory space is enabled and the BAR holds its own address.
    #[must_use]
    pub fn decodes_bar(&self) -> bool {
        let programmed = u64::from_le_bytes(self.get(BAR0)) & !BAR_FLAGS;
        self.command() & COMMAND_MEMORY != 0 && self.bar == Some(programmed)
    }

    /// Whether the function may access memory and send interrupts.
    #[must_use]
    pub fn is_bus_master(&self) -> bool {
        self.command() & COMMAND_BUS_MASTER != 0
    }

    /// The little-endian 16-bit register at `offset`.
    #[must_use]
    pub fn read_u16(&self, offset: u8) -> u16 {
        u16::from_le_bytes(self.get(usize::from(offset)))
    }

    /// The little-endian 32-bit register at `offset`.
    #[must_use]
    pub fn read_u32(&self, offset: u8) -> u32 {
        u32::from_le_bytes(self.get(usize::from(offset)))
    }

    /// All registers, for a saved state.
    #[must_use]
    pub fn registers(&self) -> &[u8] {
        &self.bytes
    }

    fn command(&self) -> u16 {
        u16::from_le_bytes(self.get(COMMAND))
    }

    fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        let bytes = self.bytes.get(offset..offset + N);
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .unwrap_or([0; N])
    }

    fn set(&mut self, offset: usize, value: &[u8]) {
        if let Some(bytes) = self.bytes.get_mut(offset..offset + value.len()) {
            bytes.copy_from_slice(value);
        }
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        if let Some(bytes) = self.writable.get_mut(offset..offset + mask.len()) {
            bytes.copy_from_slice(mask);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BAR_ADDRESS: u64 = 0x40_0000_0000;
    const BAR_LEN: u64 = 0x8000;

    fn config() -> ConfigSpace {
        let class = Class {
            base: 2,
            sub: 0,
            interface: 0,
        };
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1041,
            revision: 1,
            class,
            subsystem_vendor: 0x1af4,
            subsystem: 0x40,
        });
        config.set_bar(BAR_ADDRESS, BAR_LEN);
        config
    }

    fn enable(config: &mut ConfigSpace, command: u16) {
        config.write(4, &command.to_le_bytes());
    }

    #[test]
    fn a_driver_finds_identity_and_class() {
        let config = config();
        let mut header = [0; 16];
        config.read(0, &mut header);
        assert_eq!(header[..4], [0xf4, 0x1a, 0x41, 0x10]);
        assert_eq!(header[8..12], [1, 0, 0, 2]);
        assert_eq!(header[14], 0, "a type 0 header of a single function");
    }

    #[test]
    fn sizing_the_bar_reads_its_length_and_writing_it_back_decodes_again() {
        let mut config = config();
        enable(&mut config, COMMAND_MEMORY);
        assert!(config.decodes_bar());
        let assigned = [config.read_u32(0x10), config.read_u32(0x14)];
        config.write(0x10, &[0xff; 4]);
        config.write(0x14, &[0xff; 4]);
        assert!(!config.decodes_bar());
        let sized = u64::from(config.read_u32(0x14)) << 32 | u64::from(config.read_u32(0x10));
        assert_eq!(!(sized & !0xf) + 1, BAR_LEN);
        assert_eq!(sized & 0xf, BAR_MEMORY_64);
        config.write(0x10, &assigned[0].to_le_bytes());
        config.write(0x14, &assigned[1].to_le_bytes());
        assert!(config.decodes_bar());
    }

    #[test]
    fn the_bar_does_not_answer_while_memory_space_is_off_or_it_is_moved() {
        let mut config = config();
        assert!(!config.decodes_bar());
        enable(&mut config, COMMAND_MEMORY);
        config.write(0x10, &0xc000_0000_u32.to_le_bytes());
        assert!(!config.decodes_bar());
    }

    #[test]
    fn a_reset_makes_all_registers_what_they_were() {
        let mut config = config();
        config.add_capability(0x11, &[7, 0], &[0, 0xc0]).unwrap();
        let before = config.bytes;
        for offset in 0..256 {
            config.write(offset, &[0xff]);
        }
        assert_ne!(config.bytes, before);
        config.reset();
        assert_eq!(config.bytes, before);
    }

    #[test]
    fn bus_mastering_follows_the_command_register() {
        let mut config = config();
        assert!(!config.is_bus_master());
        enable(&mut config, COMMAND_BUS_MASTER);
        assert!(config.is_bus_master());
        enable(&mut config, 0xffff);
        assert_eq!(config.read_u16(4), 0b110, "no other bit is writable");
    }

    #[test]
    fn capabilities_are_linked_in_order_and_only_their_writable_bits_change() {
        let mut config = config();
        assert_eq!(config.read_u16(6) & STATUS_CAPABILITIES, 0);
        let first = config
            .add_capability(0x09, &[0x11, 0x22, 0x33], &[])
            .unwrap();
        let second = config.add_capability(0x11, &[0, 0], &[0x00, 0xc0]).unwrap();
        assert_ne!(config.read_u16(6) & STATUS_CAPABILITIES, 0);
        let mut link = [0];
        config.read(0x34, &mut link);
        assert_eq!(link, [first]);
        config.read(u16::from(first) + 1, &mut link);
        assert_eq!(link, [second]);
        config.read(u16::from(second) + 1, &mut link);
        assert_eq!(link, [0]);
        config.write(u16::from(first), &[0xff; 8]);
        config.write(u16::from(second), &[0xff; 4]);
        assert_eq!(config.read_u32(first), 0x2211_4809);
        assert_eq!(config.read_u32(second), 0xc000_0011);
    }

    #[test]
    fn a_capability_that_does_not_fit_is_refused() {
        let mut config = config();
        assert!(config.add_capability(9, &[0; 190], &[]).is_some());
        assert!(config.add_capability(9, &[0; 2], &[]).is_none());
        assert!(config.add_capability(9, &[], &[0]).is_none());
    }

    proptest! {
        #[test]
        fn any_sequence_of_writes_leaves_read_only_bits_alone(
            writes in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..9)), 0..64),
        ) {
            let mut config = config();
            config.add_capability(0x11, &[7, 0, 1, 2, 3, 4], &[0, 0xc0]).unwrap();
            let before = config.bytes;
            for (offset, data) in writes {
                config.write(offset, &data);
                let mut back = vec![0; data.len()];
                config.read(offset, &mut back);
            }
            for ((old, new), mask) in before.iter().zip(config.bytes).zip(config.writable) {
                prop_assert_eq!(old & !mask, new & !mask);
            }
        }
    }
}
