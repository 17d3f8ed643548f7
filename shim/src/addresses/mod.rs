//! Address services: what a guest that is not our agent's finds when it asks its network for its
//! address. The answers are the pod's own addresses, routes and name servers.
//!
//! A guest's questions (DHCP, router and neighbour solicitations) are read from its tap before they
//! are redirected, and never reach the cluster's network; answers go to the tap alone. Here is no
//! input and no output but [`serve_during`]: frames go in, frames come out.

mod dhcp4;
mod dhcp6;
mod frame;
mod nics;
mod plan;
mod router;
mod serve;
mod services;
mod wire;

use podvisor_seed::{Nic, Resolver};

pub use nics::nics;
pub use plan::{LinkPlan, Neighbour};
pub use serve::serve_during;

use crate::host::LinkSocket;

/// The hardware address of the services. It is in no table of the cluster: nothing is ever sent to it
/// but what is read here.
const SERVER_MAC: [u8; 6] = [0x02, b'p', b'o', b'd', 0, 1];

/// The sockets of a pod's links, each with what is told there.
pub fn plans(
    sockets: Vec<LinkSocket>,
    nics: &[Nic],
    resolver: &Resolver,
    hostname: &str,
) -> Vec<(LinkSocket, LinkPlan)> {
    let links = sockets.into_iter().filter_map(|socket| {
        let nic = nics.iter().find(|nic| nic.name == socket.interface)?;
        let plan = LinkPlan::new(nic, resolver, hostname, &socket.neighbours);
        Some((socket, plan))
    });
    links.collect()
}
