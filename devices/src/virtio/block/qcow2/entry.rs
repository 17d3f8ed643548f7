//! Entries of L1 and L2 tables.

use super::header::Header;

/// An L2 table or cluster that this entry alone refers to: it may be written to.
pub const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros, whatever is at its offset (version 3).
pub const ZERO: u64 = 1;
/// Offsets in a file.
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// What an L2 entry says about its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// Nothing: see below.
    Unallocated,
    /// It is zeros. There may be room for it in the file.
    Zero {
        /// Where, when it may be written to.
        room: Option<u64>,
    },
    /// It lies in the file.
    Data {
        /// Where.
        offset: u64,
        /// Whether it may be written to.
        is_own: bool,
    },
    /// It lies in the file, compressed.
    Compressed {
        /// Where; at any byte.
        offset: u64,
        /// Bytes, of which the compressed data may take fewer.
        len: u64,
    },
    /// Bits are set that cannot be.
    Wrong,
}

impl Cluster {
    /// What `entry` says in an image with this header.
    #[must_use]
    pub fn of(entry: u64, header: &Header) -> Self {
        if entry & COMPRESSED != 0 {
            return compressed(entry, header.cluster_bits);
        }
        let (offset, is_own) = (entry & OFFSET, entry & COPIED != 0);
        let is_zero = entry & ZERO != 0;
        let known = COPIED | OFFSET | if header.version == 2 { 0 } else { ZERO };
        match (is_zero, offset) {
            _ if entry & !known != 0 || !offset.is_multiple_of(header.cluster_len()) => Self::Wrong,
            (true, offset) => Self::Zero {
                room: (is_own && offset != 0).then_some(offset),
            },
            (false, 0) if is_own => Self::Wrong,
            (false, 0) => Self::Unallocated,
            (false, offset) => Self::Data { offset, is_own },
        }
    }
}

/// A compressed cluster: bits of the offset, then whole sectors more than the first.
fn compressed(entry: u64, cluster_bits: u32) -> Cluster {
    const SECTOR_LEN: u64 = 512;
    let offset_bits = 62 - (cluster_bits - 8);
    let offset = entry & ((1 << offset_bits) - 1);
    let sectors = (entry & !(COPIED | COMPRESSED)) >> offset_bits;
    let len = (sectors + 1) * SECTOR_LEN - offset % SECTOR_LEN;
    match entry & COPIED {
        0 => Cluster::Compressed { offset, len },
        _ => Cluster::Wrong,
    }
}
