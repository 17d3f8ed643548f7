//! Keeps a guest's questions for its address out of the cluster's network: they are dropped before
//! the redirect, after the services' socket has read them (tc-u32(8), tc-actions(8)).

use netlink_packet_core::{DefaultNla, Emitable as _, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionOption, TcActionType, TcFilterU32,
    TcFilterU32Option, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use super::redirect;
use super::route_socket::{RouteError, RouteSocket};

/// The action that only has a verdict, and the attribute with it (linux/tc_act/tc_gact.h).
const VERDICT: &str = "gact";
const TCA_GACT_PARMS: u16 = 2;

/// Ethernet's numbers of protocols.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// Four bytes at an offset from the IP header: mask and value.
type Key = (i32, u32, u32);

/// What is dropped: protocol, priority (each has one protocol), and what its packets have.
const QUESTIONS: [(u16, u32, &[Key]); 4] = [
    // DHCP: no IP options, UDP, the first piece of a packet, port 67.
    (
        IPV4,
        1,
        &[
            (0, 0xff00_0000, 0x4500_0000),
            (4, 0x0000_1fff, 0),
            (8, 0x00ff_0000, 17 << 16),
            (20, 0x0000_ffff, 67),
        ],
    ),
    // DHCPv6: UDP, port 547.
    (IPV6, 2, &[(4, 0xff00, 17 << 8), (40, 0xffff, 547)]),
    // Router solicitations.
    (
        IPV6,
        2,
        &[(4, 0xff00, 58 << 8), (40, 0xff00_0000, 133 << 24)],
    ),
    // Neighbour solicitations for what stands for a gateway (`addresses::plan`).
    (
        IPV6,
        2,
        &[
            (4, 0xff00, 58 << 8),
            (40, 0xff00_0000, 135 << 24),
            (48, u32::MAX, 0xfe80_0000),
            (52, u32::MAX, 0),
            (56, u32::MAX, 0x0070_6f64),
            (60, 0xffff_0000, 0),
        ],
    ),
];

/// Drops questions that come in on the tap with this index.
pub(super) fn keep(socket: &mut RouteSocket, tap: u32) -> Result<(), RouteError> {
    redirect::add_ingress(socket, tap)?;
    for (protocol, priority, keys) in QUESTIONS {
        let info = redirect::info(priority, protocol);
        let filter = redirect::filter(tap, info, TcFilterU32::KIND, drop_all(keys));
        let filter = RouteNetlinkMessage::NewTrafficFilter(filter);
        let create = NLM_F_CREATE | NLM_F_EXCL;
        socket.change(
            "keeping a guest's questions from the network",
            filter,
            create,
        )?;
    }
    Ok(())
}

fn drop_all(keys: &[Key]) -> Vec<TcOption> {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = u8::try_from(keys.len()).unwrap_or_default();
    selector.keys = keys
        .iter()
        .map(|(offset, mask, value)| {
            let mut key = TcU32Key::default();
            key.off = *offset;
            key.mask = *mask;
            key.val = *value;
            key
        })
        .collect();
    let mut verdict = TcActionGeneric::default();
    verdict.action = TcActionType::Shot;
    let mut parameters = vec![0; verdict.buffer_len()];
    verdict.emit(&mut parameters);
    let parameters = TcActionOption::Other(DefaultNla::new(TCA_GACT_PARMS, parameters));
    let mut action = TcAction::default();
    action.tab = 1;
    action.attributes = vec![
        TcActionAttribute::Kind(VERDICT.to_owned()),
        TcActionAttribute::Options(vec![parameters]),
    ];
    vec![
        TcOption::U32(TcFilterU32Option::Selector(selector)),
        TcOption::U32(TcFilterU32Option::Action(vec![action])),
    ]
}
