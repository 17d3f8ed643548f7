//! The redirect between a pod's interface and the tap beside it: what comes in on one goes out on
//! the other, before the host's own stack sees it (tc-mirred(8), tc-matchall(8)).

use std::fs;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption,
    TcActionOption, TcActionType, TcAttribute, TcFilterMatchAll, TcFilterMatchAllOption, TcHandle,
    TcMessage, TcMirror, TcMirrorActionType, TcOption,
};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use super::route_socket::{RouteError, RouteSocket};

/// The handle of every ingress queueing discipline, `ffff:`.
const INGRESS_HANDLE: u32 = 0xffff_0000;
/// Of all filters on an interface, those that keep something from the network come first.
const REDIRECT_PRIORITY: u32 = 16;
/// All protocols (linux/if_ether.h).
const ETH_P_ALL: u16 = 3;

/// Sets the tap up with the interface's MTU. It gets no address: it is a wire.
pub(super) fn bring_up(socket: &mut RouteSocket, tap: &str, mtu: u32) -> Result<(), RouteError> {
    // A kernel without IPv6 has no such file, and then no address either.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{tap}/disable_ipv6"), "1");
    let mut link = LinkMessage::default();
    link.header.index = index_of(socket, tap)?;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link.attributes.push(LinkAttribute::Mtu(mtu));
    socket.change("setting the tap up", RouteNetlinkMessage::SetLink(link), 0)
}

/// Gives an interface a hardware address.
pub(super) fn set_mac(
    socket: &mut RouteSocket,
    index: u32,
    mac: [u8; 6],
) -> Result<(), RouteError> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes.push(LinkAttribute::Address(mac.to_vec()));
    let message = RouteNetlinkMessage::SetLink(link);
    socket.change("setting a hardware address", message, 0)
}

/// The index of an interface in the namespace of the calling thread.
pub(super) fn index_of(_socket: &mut RouteSocket, name: &str) -> Result<u32, RouteError> {
    if_nametoindex(name).map_err(|_| RouteError::NoInterface(name.to_owned()))
}

/// Redirects both ways between two interfaces.
pub(super) fn join(socket: &mut RouteSocket, one: u32, other: u32) -> Result<(), RouteError> {
    for (from, to) in [(one, other), (other, one)] {
        add_ingress(socket, from)?;
        let create = NLM_F_CREATE | NLM_F_EXCL;
        let filter = RouteNetlinkMessage::NewTrafficFilter(redirect_all(from, to));
        socket.change("adding a redirect", filter, create)?;
    }
    Ok(())
}

/// Makes the place where an interface's filters are, if it is not there yet.
pub(super) fn add_ingress(socket: &mut RouteSocket, interface: u32) -> Result<(), RouteError> {
    match add_place(socket, interface, "ingress", "adding an ingress qdisc") {
        Err(RouteError::Refused {
            source: Errno::EEXIST,
            ..
        }) => Ok(()),
        other => other,
    }
}

/// Makes the place where filters of both directions are.
pub(super) fn add_clsact(socket: &mut RouteSocket, interface: u32) -> Result<(), RouteError> {
    add_place(socket, interface, "clsact", "adding a clsact qdisc")
}

fn add_place(
    socket: &mut RouteSocket,
    interface: u32,
    kind: &str,
    action: &'static str,
) -> Result<(), RouteError> {
    let mut place = ingress(interface);
    place.attributes.push(TcAttribute::Kind(kind.to_owned()));
    let qdisc = RouteNetlinkMessage::NewQueueDiscipline(place);
    socket.change(action, qdisc, NLM_F_CREATE | NLM_F_EXCL)
}

/// Removes an interface's redirect or translation, if it has one.
pub(super) fn part(socket: &mut RouteSocket, interface: u32) -> Result<(), RouteError> {
    let qdisc = RouteNetlinkMessage::DelQueueDiscipline(ingress(interface));
    match socket.change("removing an ingress qdisc", qdisc, 0) {
        Err(RouteError::Refused {
            source: Errno::ENOENT | Errno::EINVAL | Errno::ENODEV,
            ..
        }) => Ok(()),
        other => other,
    }
}

fn on_interface(index: u32) -> TcMessage {
    TcMessage::with_index(index.cast_signed())
}

/// A filter's priority and its protocol, which is in network order, as `tcm_info` has them.
pub(super) fn info(priority: u32, protocol: u16) -> u32 {
    (priority << 16) | u32::from(protocol.to_be())
}

/// A filter of what comes in on an interface.
pub(super) fn filter(interface: u32, info: u32, kind: &str, options: Vec<TcOption>) -> TcMessage {
    let mut message = on_interface(interface);
    message.header.parent = TcHandle::from(INGRESS_HANDLE);
    message.header.info = info;
    message.attributes = vec![
        TcAttribute::Kind(kind.to_owned()),
        TcAttribute::Options(options),
    ];
    message
}

/// The queueing discipline of what comes in, whatever kind it has.
fn ingress(interface: u32) -> TcMessage {
    let mut message = on_interface(interface);
    message.header.parent = TcHandle::INGRESS;
    message.header.handle = TcHandle::from(INGRESS_HANDLE);
    message
}

fn redirect_all(from: u32, to: u32) -> TcMessage {
    let mut generic = TcActionGeneric::default();
    generic.action = TcActionType::Stolen;
    let mut mirror = TcMirror::default();
    mirror.generic = generic;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
    ];
    let action = TcFilterMatchAllOption::Action(vec![action]);
    filter(
        from,
        info(REDIRECT_PRIORITY, ETH_P_ALL),
        TcFilterMatchAll::KIND,
        vec![TcOption::MatchAll(action)],
    )
}
