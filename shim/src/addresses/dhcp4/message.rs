//! Messages of DHCP (RFC 2131): what is read of a client's, and replies.

use std::net::Ipv4Addr;

use super::super::plan::{Ipv4Plan, LinkPlan};

pub const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// The fixed fields: op, htype, hlen, hops, xid, secs, flags, four addresses, chaddr, sname, file.
pub const HEAD_LEN: usize = 236;
/// Some clients take nothing shorter (RFC 1542, 2.1).
const MESSAGE_LEN_MIN: usize = 300;
/// What a message has beside itself: the headers of IP and UDP.
pub const HEADERS_LEN: usize = 28;
/// The largest packet that any client takes (RFC 2131, 2).
pub const PACKET_LEN_MIN: u16 = 576;
/// The longest piece of an option (RFC 3396).
const OPTION_LEN_MAX: usize = 255;
pub const ETHERNET: u8 = 1;
pub const BOOT_REQUEST: u8 = 1;
pub const BOOT_REPLY: u8 = 2;
pub const BROADCAST_FLAG: u8 = 0x80;

/// Codes of options (RFC 2132; 119: RFC 3397; 121: RFC 3442).
pub mod code {
    pub const PAD: u8 = 0;
    pub const NETMASK: u8 = 1;
    pub const ROUTERS: u8 = 3;
    pub const NAME_SERVERS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const MTU: u8 = 26;
    pub const REQUESTED: u8 = 50;
    pub const LEASE: u8 = 51;
    pub const KIND: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const MESSAGE: u8 = 56;
    pub const SIZE_MAX: u8 = 57;
    pub const CLIENT: u8 = 61;
    pub const SEARCH: u8 = 119;
    pub const ROUTES: u8 = 121;
    pub const END: u8 = 255;
}

/// Kinds of messages.
pub mod kind {
    pub const DISCOVER: u8 = 1;
    pub const OFFER: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const DECLINE: u8 = 4;
    pub const ACK: u8 = 5;
    pub const NAK: u8 = 6;
    pub const INFORM: u8 = 8;
}

/// What is read of a client's message.
pub struct Request<'a> {
    pub kind: u8,
    pub xid: [u8; 4],
    pub flags: [u8; 2],
    /// The address that it has.
    pub current: Ipv4Addr,
    pub requested: Option<Ipv4Addr>,
    pub server: Option<Ipv4Addr>,
    pub client: Option<&'a [u8]>,
    pub packet_len_max: u16,
}

/// A message of the guest with this hardware address.
pub fn read(message: &[u8], guest: [u8; 6]) -> Option<Request<'_>> {
    let options = message.get(HEAD_LEN..)?.strip_prefix(&COOKIE)?;
    let is_guests = message.get(..3)? == [BOOT_REQUEST, ETHERNET, 6]
        && message.get(28..34)? == guest
        // A relay has no business here.
        && message.get(24..28)? == [0; 4];
    if !is_guests {
        return None;
    }
    let mut request = Request {
        xid: array(message.get(4..8)?)?,
        flags: array(message.get(10..12)?)?,
        current: address(message.get(12..16)?)?,
        packet_len_max: PACKET_LEN_MIN,
        kind: 0,
        requested: None,
        server: None,
        client: None,
    };
    let mut rest = options;
    while let [code, after @ ..] = rest {
        rest = after;
        match *code {
            code::END => break,
            code::PAD => continue,
            _ => {}
        }
        let (len, after) = rest.split_first()?;
        let (value, after) = after.split_at_checked(usize::from(*len))?;
        rest = after;
        match *code {
            code::KIND => request.kind = *value.first()?,
            code::REQUESTED => request.requested = Some(address(value)?),
            code::SERVER => request.server = Some(address(value)?),
            code::CLIENT => request.client = Some(value),
            code::SIZE_MAX => {
                let len_max = u16::from_be_bytes(array(value)?);
                request.packet_len_max = len_max.max(PACKET_LEN_MIN);
            }
            _ => {}
        }
    }
    Some(request)
}

fn array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    array::<4>(bytes).map(Ipv4Addr::from)
}

/// A reply in the making.
pub struct Reply {
    bytes: Vec<u8>,
    len_max: usize,
}

impl Reply {
    /// A reply with what all kinds have.
    pub fn new(
        link: &LinkPlan,
        plan: &Ipv4Plan,
        request: &Request<'_>,
        kind: u8,
        yours: Ipv4Addr,
    ) -> Self {
        let mut bytes = vec![BOOT_REPLY, ETHERNET, 6, 0];
        bytes.extend(request.xid);
        bytes.extend([0; 2]);
        bytes.extend(request.flags);
        // A refused client has no address.
        let current = match kind {
            kind::NAK => Ipv4Addr::UNSPECIFIED,
            _ => request.current,
        };
        for address in [current, yours, plan.server, Ipv4Addr::UNSPECIFIED] {
            bytes.extend(address.octets());
        }
        bytes.extend(link.mac);
        bytes.resize(HEAD_LEN, 0);
        bytes.extend(COOKIE);
        let mut reply = Self {
            bytes,
            len_max: usize::from(request.packet_len_max.min(link.mtu)).saturating_sub(HEADERS_LEN),
        };
        reply.put(code::KIND, &[kind]);
        reply.put(code::SERVER, &plan.server.octets());
        // RFC 6842.
        reply.put(code::CLIENT, request.client.unwrap_or_default());
        reply
    }

    /// How many bytes the next option can have.
    pub fn room(&self) -> usize {
        // One byte for the end.
        let left = self.len_max.saturating_sub(self.bytes.len() + 1);
        left.saturating_sub(2 * left.div_ceil(OPTION_LEN_MAX + 2))
    }

    /// Adds an option; none that is empty, nor one that does not fit any more.
    pub fn put(&mut self, code: u8, value: &[u8]) {
        if value.len() > self.room() {
            return;
        }
        for piece in value.chunks(OPTION_LEN_MAX) {
            self.bytes.push(code);
            self.bytes
                .push(u8::try_from(piece.len()).unwrap_or(u8::MAX));
            self.bytes.extend(piece);
        }
    }

    /// The message.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.push(code::END);
        let len = self.bytes.len().max(MESSAGE_LEN_MIN);
        self.bytes.resize(len, code::PAD);
        self.bytes
    }
}
