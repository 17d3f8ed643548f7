//! Addresses of devices: on the PCI bus, on the network.

use std::fmt;
use std::str::FromStr;

use super::whole_number;
use crate::{Kind, ValueError};

/// A device number on the guest's PCI bus. Number 0 is the host bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciSlot(u8);

impl PciSlot {
    /// The largest: a bus has 32 devices.
    pub const MAX: u8 = 31;
    const WHAT: &'static str = "a PCI device: a number from 1 to 31, or \"00:01.0\" to \"00:1f.0\"";
    /// The form of it.
    pub const KIND: Kind = Kind::Text {
        pattern: r"^([1-9]|[12][0-9]|3[01]|(0000:)?00:(0[1-9a-f]|1[0-9a-f])\.0)$",
        max_len: 12,
        what: Self::WHAT,
    };

    /// The device number, 1 to 31.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }
}

impl FromStr for PciSlot {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let address = text.strip_prefix("0000:").unwrap_or(text);
        let device = address
            .strip_prefix("00:")
            .and_then(|rest| rest.strip_suffix(".0"))
            .filter(|device| {
                let digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
                device.len() == 2 && device.bytes().all(digit)
            });
        let number = match device {
            Some(device) => u8::from_str_radix(device, 16).ok(),
            None => whole_number(text).and_then(|number| u8::try_from(number).ok()),
        };
        number
            .filter(|number| (1..=Self::MAX).contains(number))
            .map(Self)
            .ok_or_else(|| ValueError::new(text, Self::WHAT))
    }
}

impl fmt::Display for PciSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00:{:02x}.0", self.0)
    }
}

deserialize_from_text!(PciSlot);

/// The address of one network interface: neither a group's nor all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    const WHAT: &'static str = "the MAC address of one interface, such as 52:54:00:12:34:56 (no group address, not all zeros)";
    /// The form of it: the second digit is even.
    pub const KIND: Kind = Kind::Text {
        pattern: "^[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}$",
        max_len: 17,
        what: Self::WHAT,
    };

    /// The six bytes.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let error = || ValueError::new(text, Self::WHAT);
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            *octet = parts.next().and_then(hex_byte).ok_or_else(error)?;
        }
        let [first, ..] = octets;
        let is_one = first & 1 == 0 && octets != [0; 6] && parts.next().is_none();
        is_one.then_some(Self(octets)).ok_or_else(error)
    }
}

/// Two digits.
pub(super) fn hex_byte(text: &str) -> Option<u8> {
    let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u8::from_str_radix(text, 16).ok()).flatten()
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

deserialize_from_text!(MacAddress);
