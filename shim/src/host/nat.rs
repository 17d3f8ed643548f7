//! Address translation between a pod's interface and a guest with a private address (tc-nat(8)).
//!
//! The interface keeps the pod's address, and the namespace's own stack forwards between it and the
//! tap: it finds neighbours, counts hops and says when a packet is too large. A guest is all that
//! is behind the address, so one address stands for the other and no connection is tracked: tc's
//! stateless action suffices. It is part of the kernels' traffic control, of which the redirect is
//! too, and needs neither nf_tables nor iptables nor their programs on the node.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionNatOption, TcActionOption, TcActionType,
    TcFilterMatchAll, TcFilterMatchAllOption, TcHandle, TcMessage, TcNat, TcNatFlags, TcOption,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::redirect;
use super::route_socket::{RouteError, RouteSocket};

/// Where the kernel is told to forward.
const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const KIND: &str = "nat";
/// Ethernet's number of IPv4.
const IPV4: u16 = 0x0800;
const PRIORITY: u32 = 16;
/// Where filters of what comes in and of what goes out are.
const INGRESS: TcHandle = TcHandle {
    major: u16::MAX,
    minor: TcHandle::MIN_INGRESS,
};
const EGRESS: TcHandle = TcHandle {
    major: u16::MAX,
    minor: TcHandle::MIN_EGRESS,
};

/// The private network of a card: the namespace and the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatNetwork {
    /// The namespace's address, which is the guest's gateway.
    pub gateway: Ipv4Addr,
    /// The guest's.
    pub guest: Ipv4Addr,
}

impl NatNetwork {
    /// Bits of the network's prefix.
    pub const PREFIX_LEN: u8 = 24;

    /// The network of the card with this number. Nobody's cluster is in this range, which is for
    /// measurements between devices (RFC 2544), and nobody but the guest sees it.
    pub(super) fn of_card(number: usize) -> Self {
        let number = u8::try_from(number).unwrap_or(u8::MAX);
        Self {
            gateway: Ipv4Addr::new(198, 18, number, 1),
            guest: Ipv4Addr::new(198, 18, number, 2),
        }
    }
}

/// Forwards between an interface, which has `address`, and the tap of a guest in `network`.
pub(super) fn join(
    socket: &mut RouteSocket,
    interface: u32,
    tap: u32,
    address: Ipv4Addr,
    network: NatNetwork,
) -> Result<(), RouteError> {
    fs::write(FORWARD, "1").map_err(RouteError::Forward)?;
    let gateway = gateway(tap, network);
    let create = NLM_F_CREATE | NLM_F_EXCL;
    socket.change("giving the tap an address", gateway, create)?;
    redirect::add_clsact(socket, interface)?;
    let guest = network.guest;
    for (parent, from, to, flags) in [
        (INGRESS, address, guest, TcNatFlags::empty()),
        (EGRESS, guest, address, TcNatFlags::Egress),
    ] {
        let filter = translate(interface, parent, from, to, flags);
        let filter = RouteNetlinkMessage::NewTrafficFilter(filter);
        socket.change(
            "adding an address translation (module act_nat)",
            filter,
            create,
        )?;
    }
    Ok(())
}

fn gateway(tap: u32, network: NatNetwork) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = NatNetwork::PREFIX_LEN;
    message.header.index = tap;
    let address = IpAddr::V4(network.gateway);
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    RouteNetlinkMessage::NewAddress(message)
}

fn translate(
    interface: u32,
    parent: TcHandle,
    from: Ipv4Addr,
    to: Ipv4Addr,
    flags: TcNatFlags,
) -> TcMessage {
    let mut generic = TcActionGeneric::default();
    generic.action = TcActionType::Ok;
    let mut nat = TcNat::default();
    nat.generic = generic;
    nat.old_addr = from;
    nat.new_addr = to;
    nat.mask = Ipv4Addr::BROADCAST;
    nat.flags = flags;
    let mut action = TcAction::default();
    action.tab = 1;
    action.attributes = vec![
        TcActionAttribute::Kind(KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Nat(TcActionNatOption::Parms(nat))]),
    ];
    let action = TcOption::MatchAll(TcFilterMatchAllOption::Action(vec![action]));
    let info = redirect::info(PRIORITY, IPV4);
    let mut message = redirect::filter(interface, info, TcFilterMatchAll::KIND, vec![action]);
    message.header.parent = parent;
    message
}
