//! The packets of virtio-vsock (virtio 1.2, 5.10.6): a header of 44 bytes, then data.

use vm_memory::{ByteValued, Le16, Le32, Le64};

/// Bytes of a header on the wire.
pub const HEADER_LEN: usize = size_of::<WireHeader>();
/// The host's address in every guest (`VMADDR_CID_HOST`, `linux/vm_sockets.h`).
pub const HOST_CID: u64 = 2;
/// `VIRTIO_VSOCK_TYPE_STREAM`, the one socket type without a feature bit (5.10.6).
pub const TYPE_STREAM: u16 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_RCV`: the sender of the packet will receive no more data.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_SEND`: the sender of the packet will send no more data.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both ways are shut down: the peer answers with a reset when it is done (5.10.6.5).
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// `struct virtio_vsock_hdr` as it lies in guest memory.
#[derive(Clone, Copy, Default)]
#[repr(C, packed)]
pub struct WireHeader {
    src_cid: Le64,
    dst_cid: Le64,
    src_port: Le32,
    dst_port: Le32,
    len: Le32,
    kind: Le16,
    op: Le16,
    flags: Le32,
    buf_alloc: Le32,
    fwd_cnt: Le32,
}

// SAFETY: packed, so there is no padding, and every field is a little-endian integer, for
// which any bytes are a value.
unsafe impl ByteValued for WireHeader {}

const _: () = assert!(HEADER_LEN == 44, "5.10.6 fixes the header's size");

/// What a packet is for (`enum virtio_vsock_op`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Opens a connection.
    Request = 1,
    /// Accepts one.
    Response = 2,
    /// Refuses or ends one at once.
    Reset = 3,
    /// Announces what the sender will no longer do.
    Shutdown = 4,
    /// Carries data.
    Data = 5,
    /// Tells how much the sender can take.
    CreditUpdate = 6,
    /// Asks for a credit update.
    CreditRequest = 7,
}

impl Op {
    /// The operation with this number, if there is one.
    #[must_use]
    pub fn from_wire(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// The two port numbers of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// The port on the host's side.
    pub host: u32,
    /// The port on the guest's side.
    pub guest: u32,
}

/// A header in the host's types. Which of its ports is the guest's follows from its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who sends.
    pub src_cid: u64,
    /// Who receives.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's port.
    pub dst_port: u32,
    /// Bytes of data after the header.
    pub len: u32,
    /// The type of socket; [`TYPE_STREAM`] is the only one we offer.
    pub kind: u16,
    /// The operation's number, see [`Op::from_wire`].
    pub op: u16,
    /// Of a [`Op::Shutdown`], what is shut down.
    pub flags: u32,
    /// The sender's receive window in bytes.
    pub buf_alloc: u32,
    /// Bytes the sender's user has taken out of that window so far, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// The ports of a packet that came from the guest.
    #[must_use]
    pub fn ports_from_guest(&self) -> Ports {
        Ports {
            host: self.dst_port,
            guest: self.src_port,
        }
    }
}

impl From<WireHeader> for Header {
    fn from(wire: WireHeader) -> Self {
        Self {
            src_cid: wire.src_cid.into(),
            dst_cid: wire.dst_cid.into(),
            src_port: wire.src_port.into(),
            dst_port: wire.dst_port.into(),
            len: wire.len.into(),
            kind: wire.kind.into(),
            op: wire.op.into(),
            flags: wire.flags.into(),
            buf_alloc: wire.buf_alloc.into(),
            fwd_cnt: wire.fwd_cnt.into(),
        }
    }
}

impl From<Header> for WireHeader {
    fn from(header: Header) -> Self {
        Self {
            src_cid: header.src_cid.into(),
            dst_cid: header.dst_cid.into(),
            src_port: header.src_port.into(),
            dst_port: header.dst_port.into(),
            len: header.len.into(),
            kind: header.kind.into(),
            op: header.op.into(),
            flags: header.flags.into(),
            buf_alloc: header.buf_alloc.into(),
            fwd_cnt: header.fwd_cnt.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_lies_in_memory_as_the_specification_says() {
        let header = Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: 0x0102_0304,
            dst_port: 5,
            len: 6,
            kind: TYPE_STREAM,
            op: Op::Data as u16,
            flags: 7,
            buf_alloc: 8,
            fwd_cnt: 9,
        };
        let wire = WireHeader::from(header);
        #[rustfmt::skip]
        let bytes = [
            3, 0, 0, 0, 0, 0, 0, 0,  2, 0, 0, 0, 0, 0, 0, 0,
            4, 3, 2, 1,  5, 0, 0, 0,  6, 0, 0, 0,  1, 0,  5, 0,
            7, 0, 0, 0,  8, 0, 0, 0,  9, 0, 0, 0,
        ];
        assert_eq!(wire.as_slice(), bytes);
        assert_eq!(Header::from(wire), header);
    }

    #[test]
    fn operation_numbers_survive_the_wire() {
        for number in 0..=u16::MAX {
            if let Some(op) = Op::from_wire(number) {
                assert_eq!(op as u16, number);
            } else {
                assert!(!(1..=7).contains(&number));
            }
        }
    }
}
