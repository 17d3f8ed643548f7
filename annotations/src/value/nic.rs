//! How interfaces of the pod's network namespace are network cards of the machine.

use serde::Deserialize;

use super::address::{MacAddress, PciSlot};
use super::disk::QueueCount;
use crate::{Field, Kind};

number! {
    /// The longest packet in bytes, without the Ethernet header.
    Mtu(u16) in 68..=65535, "an MTU"
}

choice! {
    /// Who owns the interface's addresses.
    NicMode {
        Redirect = "redirect": "the guest: it has the pod's addresses, by DHCP and router advertisement, and its MAC",
        Nat = "nat": "the pod's network namespace: the guest has a private IPv4 address, by DHCP, that is translated to the interface's in both directions",
    }
}

text! {
    /// Name of a network interface, as the kernel takes it.
    InterfaceName: "^[^/:\\s]{1,15}$", at most 15, is_interface_name,
    "the name of an interface: 1 to 15 printable characters without '/', ':' and spaces"
}

fn is_interface_name(text: &str) -> bool {
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':');
    !matches!(text, "" | "." | "..") && !text.contains(forbidden)
}

/// An interface as a network card.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Which interface of the pod's network namespace.
    pub name: InterfaceName,
    /// The card's address; the interface's own without.
    pub mac: Option<MacAddress>,
    /// Where on the PCI bus it is.
    pub pci: Option<PciSlot>,
    /// How many pairs of queues it has.
    pub queues: Option<QueueCount>,
    /// Who owns the addresses.
    pub mode: Option<NicMode>,
    /// The longest packet; the interface's own without.
    pub mtu: Option<Mtu>,
}

impl Nic {
    /// Most cards of a machine: each takes a device of the PCI bus.
    pub const MAX_COUNT: usize = 8;

    const MAP: Kind = Kind::Map(&[
        Field::required(
            "name",
            InterfaceName::KIND,
            "the interface in the pod's network namespace, such as `eth0`",
        ),
        Field::optional(
            "mac",
            MacAddress::KIND,
            "the card's address; default: the interface's",
        ),
        Field::optional(
            "pci",
            PciSlot::KIND,
            "device on the PCI bus; default: the next free one",
        ),
        Field::optional("queues", QueueCount::KIND, "pairs of queues; default: 1"),
        Field::optional(
            "mode",
            NicMode::KIND,
            "who owns the addresses; default: `redirect`",
        ),
        Field::optional(
            "mtu",
            Mtu::KIND,
            "the longest packet in bytes; default: the interface's, which is also the most",
        ),
    ]);
    /// The form of a list of them.
    pub const LIST: Kind = Kind::List {
        of: &Self::MAP,
        max: Self::MAX_COUNT,
    };
}
