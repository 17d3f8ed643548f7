//! What the guest is told about its card.

use thiserror::Error;

/// The smallest MTU of IPv4 (RFC 791), which is also virtio's (5.1.4.1).
const MIN_MTU: u16 = 68;
/// `VIRTIO_NET_S_LINK_UP` in `status`: the tap is there as long as the card is.
const LINK_UP: u16 = 1;

/// Not an address or not a size that a card can have.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NetConfigError {
    /// All zero, or with the group bit.
    #[error("a card's hardware address is not zero and not a group's")]
    MacAddress,
    /// Below what IPv4 needs.
    #[error("an MTU is at least {MIN_MTU} bytes")]
    Mtu,
}

/// The hardware address of one card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress([u8; 6]);

impl TryFrom<[u8; 6]> for MacAddress {
    type Error = NetConfigError;

    fn try_from(bytes: [u8; 6]) -> Result<Self, Self::Error> {
        let [first, ..] = bytes;
        let is_group = first & 1 != 0;
        if is_group || bytes == [0; 6] {
            return Err(NetConfigError::MacAddress);
        }
        Ok(Self(bytes))
    }
}

/// The largest packet of a link, in bytes and without the Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtu(u16);

impl TryFrom<u16> for Mtu {
    type Error = NetConfigError;

    fn try_from(bytes: u16) -> Result<Self, Self::Error> {
        if bytes < MIN_MTU {
            Err(NetConfigError::Mtu)
        } else {
            Ok(Self(bytes))
        }
    }
}

/// What a card is.
#[derive(Clone, Copy, Debug)]
pub struct NetConfig {
    /// Its hardware address.
    pub mac: MacAddress,
    /// The MTU its driver starts with; without one it is the driver's 1500.
    pub mtu: Option<Mtu>,
}

impl NetConfig {
    /// `struct virtio_net_config` (5.1.4) up to its `mtu`, of a card with `pairs` pairs of queues.
    pub(super) fn space(&self, pairs: u16) -> [u8; 12] {
        let MacAddress([a, b, c, d, e, f]) = self.mac;
        let [mtu_low, mtu_high] = self.mtu.map_or(0, |mtu| mtu.0).to_le_bytes();
        let [link_low, link_high] = LINK_UP.to_le_bytes();
        let [pairs_low, pairs_high] = pairs.to_le_bytes();
        [
            a, b, c, d, e, f, link_low, link_high, pairs_low, pairs_high, mtu_low, mtu_high,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_sizes_no_card_can_have_are_refused() {
        assert_eq!(
            MacAddress::try_from([0; 6]),
            Err(NetConfigError::MacAddress)
        );
        assert_eq!(
            MacAddress::try_from([1, 0, 0, 0, 0, 2]),
            Err(NetConfigError::MacAddress)
        );
        assert_eq!(Mtu::try_from(67), Err(NetConfigError::Mtu));
        assert!(Mtu::try_from(68).is_ok());
    }

    #[test]
    fn the_configuration_lies_as_the_specification_says() {
        let mac = MacAddress::try_from([2, 3, 4, 5, 6, 7]).unwrap();
        let config = NetConfig {
            mac,
            mtu: Some(Mtu::try_from(1400).unwrap()),
        };
        assert_eq!(config.space(4), [2, 3, 4, 5, 6, 7, 1, 0, 4, 0, 0x78, 5]);
    }
}
