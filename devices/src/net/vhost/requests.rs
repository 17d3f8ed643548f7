//! Numbers and arguments of vhost's requests (linux/vhost.h, linux/vhost_types.h).

use std::io;

pub(super) const GET_FEATURES: u32 = 0x8008_af00;
pub(super) const SET_FEATURES: u32 = 0x4008_af00;
pub(super) const SET_OWNER: u32 = 0xaf01;
pub(super) const SET_MEM_TABLE: u32 = 0x4008_af03;
pub(super) const SET_VRING_NUM: u32 = 0x4008_af10;
pub(super) const SET_VRING_ADDR: u32 = 0x4028_af11;
pub(super) const SET_VRING_BASE: u32 = 0x4008_af12;
pub(super) const GET_VRING_BASE: u32 = 0xc008_af12;
pub(super) const SET_VRING_KICK: u32 = 0x4008_af20;
pub(super) const SET_VRING_CALL: u32 = 0x4008_af21;
pub(super) const SET_VRING_ERR: u32 = 0x4008_af22;
pub(super) const NET_SET_BACKEND: u32 = 0x4008_af30;

/// The requests with which a card's queues start and stop, for the filters of the threads that
/// do so: its driver's register accesses lead to them.
pub const START_AND_STOP: [u32; 10] = [
    SET_FEATURES,
    SET_MEM_TABLE,
    SET_VRING_NUM,
    SET_VRING_ADDR,
    SET_VRING_BASE,
    GET_VRING_BASE,
    SET_VRING_KICK,
    SET_VRING_CALL,
    SET_VRING_ERR,
    NET_SET_BACKEND,
];

/// Most ranges of memory that a guest has: below the hole of its devices, above it, and what is
/// plugged.
const MAX_REGIONS: usize = 3;

/// `struct vhost_vring_state`, and `struct vhost_vring_file` with the descriptor as its value.
#[repr(C)]
pub(super) struct VringValue {
    pub(super) index: u32,
    pub(super) value: u32,
}

/// `struct vhost_vring_addr`: where the rings lie in this process.
#[repr(C)]
#[derive(Default)]
pub(super) struct VringAddresses {
    pub(super) index: u32,
    pub(super) flags: u32,
    pub(super) descriptors: u64,
    pub(super) used: u64,
    pub(super) available: u64,
    pub(super) log: u64,
}

/// `struct vhost_memory_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MemoryRegion {
    guest_address: u64,
    len: u64,
    host_address: u64,
    flags: u64,
}

/// `struct vhost_memory` with room for [`MAX_REGIONS`].
#[repr(C)]
#[derive(Default)]
pub(super) struct MemoryTable {
    count: u32,
    padding: u32,
    regions: [MemoryRegion; MAX_REGIONS],
}

impl MemoryTable {
    /// Appends a range of guest memory and its place in this process.
    ///
    /// # Errors
    /// When there are [`MAX_REGIONS`] already.
    pub(super) fn push(
        &mut self,
        guest_address: u64,
        len: u64,
        host_address: u64,
    ) -> io::Result<()> {
        let next = self.regions.iter_mut().find(|region| region.len == 0);
        *next.ok_or(io::ErrorKind::OutOfMemory)? = MemoryRegion {
            guest_address,
            len,
            host_address,
            flags: 0,
        };
        self.count += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size that a request's number tells (`_IOC_SIZE`).
    fn size(request: u32) -> usize {
        usize::try_from(request >> 16 & 0x3fff).unwrap()
    }

    #[test]
    fn arguments_are_as_large_as_the_requests_say() {
        for request in [
            SET_VRING_NUM,
            SET_VRING_BASE,
            GET_VRING_BASE,
            SET_VRING_KICK,
            SET_VRING_CALL,
            SET_VRING_ERR,
            NET_SET_BACKEND,
        ] {
            assert_eq!(size(request), size_of::<VringValue>(), "{request:#x}");
        }
        assert_eq!(size(SET_VRING_ADDR), size_of::<VringAddresses>());
        assert_eq!(size(GET_FEATURES), size_of::<u64>());
        assert_eq!(size(SET_FEATURES), size_of::<u64>());
        // Its number counts the head only; 32 bytes for each region follow.
        assert_eq!(
            size(SET_MEM_TABLE),
            size_of::<MemoryTable>() - MAX_REGIONS * 32
        );
    }

    #[test]
    fn a_table_counts_its_regions_and_takes_no_more() {
        let mut table = MemoryTable::default();
        table.push(0, 1 << 30, 0x7000_0000).unwrap();
        table.push(4 << 30, 1 << 30, 0x8000_0000).unwrap();
        table.push(8 << 30, 1 << 30, 0x9000_0000).unwrap();
        assert_eq!(table.count, 3);
        assert!(table.push(12 << 30, 1 << 30, 0xa000_0000).is_err());
    }
}
