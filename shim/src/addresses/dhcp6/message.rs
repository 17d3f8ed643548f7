//! Messages of DHCPv6 (RFC 8415): what is read of a client's, and options.

use std::net::Ipv6Addr;

/// Associations of a message that are looked at, and addresses of each: a guest has one card here.
const ASSOCIATIONS_MAX: usize = 4;
const ADDRESSES_MAX: usize = 8;
/// The longest name of a client (RFC 8415, 11.1).
pub const DUID_LEN_MAX: usize = 130;

/// Codes of options (RFC 8415; RFC 3646).
pub mod code {
    pub const CLIENT: u16 = 1;
    pub const SERVER: u16 = 2;
    pub const ASSOCIATION: u16 = 3;
    pub const TEMPORARY: u16 = 4;
    pub const ADDRESS: u16 = 5;
    pub const PREFERENCE: u16 = 7;
    pub const STATUS: u16 = 13;
    pub const RAPID: u16 = 14;
    pub const NAME_SERVERS: u16 = 23;
    pub const SEARCH: u16 = 24;
    pub const DELEGATION: u16 = 25;
}

/// Kinds of messages.
pub mod kind {
    pub const SOLICIT: u8 = 1;
    pub const ADVERTISE: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const CONFIRM: u8 = 4;
    pub const RENEW: u8 = 5;
    pub const REBIND: u8 = 6;
    pub const REPLY: u8 = 7;
    pub const RELEASE: u8 = 8;
    pub const DECLINE: u8 = 9;
    pub const INFORMATION: u8 = 11;
}

/// What is read of a client's message.
#[derive(Default)]
pub struct Request<'a> {
    pub kind: u8,
    pub transaction: [u8; 3],
    pub client: Option<&'a [u8]>,
    pub server: Option<&'a [u8]>,
    pub is_rapid: bool,
    pub associations: Vec<Association>,
}

/// An identity association: the client's name for a set of addresses or prefixes.
#[derive(Default)]
pub struct Association {
    /// The code of its option.
    pub kind: u16,
    pub id: [u8; 4],
    pub addresses: Vec<Ipv6Addr>,
}

/// A message.
pub fn read(message: &[u8]) -> Option<Request<'_>> {
    let (head, options) = message.split_at_checked(4)?;
    let [kind, transaction @ ..] = head else {
        return None;
    };
    let mut request = Request {
        kind: *kind,
        transaction: transaction.try_into().ok()?,
        ..Request::default()
    };
    let mut rest = options;
    while let Some((code, value)) = take_option(&mut rest)? {
        match code {
            code::CLIENT if value.len() > DUID_LEN_MAX => return None,
            code::CLIENT => request.client = Some(value),
            code::SERVER => request.server = Some(value),
            code::RAPID => request.is_rapid = true,
            code::ASSOCIATION | code::TEMPORARY | code::DELEGATION
                if request.associations.len() < ASSOCIATIONS_MAX =>
            {
                request.associations.push(association(code, value)?);
            }
            _ => {}
        }
    }
    Some(request)
}

fn association(kind: u16, value: &[u8]) -> Option<Association> {
    let mut association = Association {
        kind,
        id: value.get(..4)?.try_into().ok()?,
        ..Association::default()
    };
    // Behind the two times, which temporary addresses have not.
    let head_len = if kind == code::TEMPORARY { 4 } else { 12 };
    let mut rest = value.get(head_len..)?;
    while let Some((code, value)) = take_option(&mut rest)? {
        if code == code::ADDRESS && association.addresses.len() < ADDRESSES_MAX {
            let address: [u8; 16] = value.get(..16)?.try_into().ok()?;
            association.addresses.push(address.into());
        }
    }
    Some(association)
}

/// The next option; `Some(None)` at the end, None when the message is broken.
pub fn take_option<'a>(rest: &mut &'a [u8]) -> Option<Option<(u16, &'a [u8])>> {
    if rest.is_empty() {
        return Some(None);
    }
    let (head, after) = rest.split_at_checked(4)?;
    let (&[a, b], &[c, d]) = (head.first_chunk::<2>()?, head.last_chunk::<2>()?);
    let (value, after) = after.split_at_checked(usize::from(u16::from_be_bytes([c, d])))?;
    *rest = after;
    Some(Some((u16::from_be_bytes([a, b]), value)))
}

/// Adds an option, unless it is empty.
pub fn put_some(message: &mut Vec<u8>, code: u16, value: &[u8]) {
    if !value.is_empty() {
        put(message, code, value);
    }
}

/// Adds an option. Its callers bound its length.
pub fn put(message: &mut Vec<u8>, code: u16, value: &[u8]) {
    message.extend(code.to_be_bytes());
    message.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
    message.extend(value);
}
