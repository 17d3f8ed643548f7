//! A machine's network: cards beside the pod's interfaces, and what the machine is told of them.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use podvisor_annotations::value::nic::{Nic as Annotated, NicMode};
use podvisor_seed::{Nic as SeedNic, Resolver, Route};

use super::error::TaskError;
use crate::addresses::{self, LinkPlan};
use crate::guest::boot::{BootError, BootTools, open_taps, redirect};
use crate::guest::card::Card;
use crate::host::{
    CardRequest, HostError, LinkSocket, MacRequest, NatNetwork, NetworkRequest, Nic,
};
use crate::machine::identity::Identity;
use crate::machine::seed::SeedPlan;
use crate::pod::network::PodNetwork;

/// A network that is connected to its cards.
pub(super) struct Connected {
    /// The cards, in the order of their interfaces.
    pub cards: Vec<Card>,
    /// What the machine is told of them.
    pub told: Vec<SeedNic>,
    /// Where it asks, and what it is answered.
    pub links: Vec<(LinkSocket, LinkPlan)>,
}

/// What a pod asks of the cards of its interfaces.
#[derive(Clone, Debug, Default)]
pub(super) struct CardsPlan {
    requests: Vec<CardRequest>,
    /// Places on the bus, by interface.
    places: Vec<(String, u8)>,
}

impl CardsPlan {
    /// What the annotation says.
    ///
    /// # Errors
    /// [`TaskError::Invalid`] for what a machine with this network cannot have.
    pub fn of(annotated: &[Annotated], network: &PodNetwork) -> Result<Self, TaskError> {
        let invalid = |nic: &Annotated, why: &str| {
            let name = nic.name.as_str();
            TaskError::Invalid(format!("podvisor.io/nics: {name}: {why}"))
        };
        let mut plan = Self::default();
        for nic in annotated {
            if *network == PodNetwork::Isolated {
                return Err(invalid(nic, "the pod has no network"));
            }
            let name = nic.name.as_str().to_owned();
            plan.places
                .extend(nic.pci.map(|slot| (name.clone(), slot.get())));
            plan.requests.push(CardRequest {
                name,
                mac: nic.mac.map(|mac| mac.octets()),
                mtu: nic.mtu.map(|mtu| mtu.get()),
                queues: nic.queues.map_or(1, |queues| queues.get()),
                nat: nic.mode == Some(NicMode::Nat),
            });
        }
        Ok(plan)
    }

    fn card(&self, nic: Nic) -> Card {
        let place = self.places.iter().find(|(name, _)| *name == nic.name);
        let pci = place.map(|(_, slot)| *slot);
        Card { nic, pci }
    }
}

/// Connects a machine's cards to be to its pod's network.
///
/// # Errors
/// [`TaskError`]; no tap is left.
pub(super) async fn connect(
    network: &PodNetwork,
    plan: CardsPlan,
    identity: &Identity,
    seed: &SeedPlan,
    tools: &BootTools,
) -> Result<Connected, TaskError> {
    name_interfaces(network, &plan, identity, tools).await?;
    let annotated_too = |error| match error {
        BootError::Host(error) => annotated(error),
        other => other.into(),
    };
    let opened = open_taps(network, plan.requests.clone(), tools).await;
    let nics = opened.map_err(annotated_too)?;
    let sockets = open_links(network, tools).await?;
    let redirected = redirect(network, plan.requests.clone(), tools).await;
    let mut told = addresses::nics(&redirected.map_err(annotated_too)?);
    for nic in &mut told {
        if let Some(card) = nics.iter().find(|card| card.name == nic.name) {
            nic.mtu = u16::try_from(card.mtu).unwrap_or(nic.mtu);
            if let Some(network) = card.nat {
                translate(nic, network)?;
            }
        }
    }
    let resolver = Resolver::parse(&seed.resolv_conf);
    let links = addresses::plans(sockets, &told, &resolver, &seed.hostname);
    tools.timeline.done("network");
    Ok(Connected {
        cards: nics.into_iter().map(|nic| plan.card(nic)).collect(),
        told,
        links,
    })
}

/// Says which annotation asks for what the network has not.
fn annotated(error: HostError) -> TaskError {
    match error {
        HostError::NoInterface { .. } | HostError::Mtu { .. } | HostError::NoAddress(_) => {
            TaskError::Nics(error)
        }
        other => other.into(),
    }
}

/// Tells of a private network what is told of an interface: all that the interface leads to is
/// behind the gateway.
fn translate(nic: &mut SeedNic, network: NatNetwork) -> Result<(), TaskError> {
    let gateway = Some(IpAddr::V4(network.gateway));
    let own = nic.addresses.iter().map(|net| (net.trunc(), 0));
    let others = nic
        .routes
        .iter()
        .map(|route| (route.destination, route.metric));
    let behind = own
        .chain(others)
        .filter(|(net, _)| matches!(net, IpNet::V4(net) if net.prefix_len() < 32));
    nic.routes = behind
        .map(|(destination, metric)| Route {
            destination,
            gateway,
            metric,
        })
        .collect();
    let address = Ipv4Net::new(network.guest, NatNetwork::PREFIX_LEN);
    let address = address.map_err(|error| TaskError::Invalid(error.to_string()))?;
    nic.addresses = vec![address.into()];
    Ok(())
}

/// Gives the pod's interfaces the addresses that the machine had before, or is to have, which its
/// guest takes over.
async fn name_interfaces(
    network: &PodNetwork,
    plan: &CardsPlan,
    identity: &Identity,
    tools: &BootTools,
) -> Result<(), TaskError> {
    let PodNetwork::Namespace(namespace) = network else {
        return Ok(());
    };
    let request = MacRequest {
        namespace: namespace.clone(),
        seed: identity.mac_seed(),
        cards: plan.requests.clone(),
    };
    let host = Arc::clone(&tools.host);
    let named = tokio::task::spawn_blocking(move || host.set_macs(&request)).await?;
    named.map_err(annotated)
}

/// Makes ready to answer the guest when it asks for its addresses.
async fn open_links(network: &PodNetwork, tools: &BootTools) -> Result<Vec<LinkSocket>, TaskError> {
    let PodNetwork::Namespace(namespace) = network else {
        return Ok(Vec::new());
    };
    let request = NetworkRequest {
        namespace: namespace.clone(),
    };
    let host = Arc::clone(&tools.host);
    Ok(tokio::task::spawn_blocking(move || host.open_links(&request)).await??)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use podvisor_annotations::Annotations;

    use super::*;

    fn plan(nics: &str, network: &PodNetwork) -> Result<CardsPlan, TaskError> {
        let all = BTreeMap::from([("podvisor.io/nics".to_owned(), nics.to_owned())]);
        CardsPlan::of(&Annotations::parse(&all).unwrap().nics, network)
    }

    #[test]
    fn cards_are_as_the_annotation_says() {
        let network = PodNetwork::Namespace("/run/netns/a".into());
        let nics = "[{name: net1, mac: '52:54:00:12:34:56', mtu: 1400, queues: 4}, {name: eth0, pci: '00:0b.0', mode: nat}]";
        let plan = plan(nics, &network).unwrap();
        let expected = [
            CardRequest {
                name: "net1".into(),
                mac: Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
                mtu: Some(1400),
                queues: 4,
                nat: false,
            },
            CardRequest {
                name: "eth0".into(),
                mac: None,
                mtu: None,
                queues: 1,
                nat: true,
            },
        ];
        assert_eq!(plan.requests, expected);
        assert_eq!(plan.places, [("eth0".to_owned(), 11)]);
    }

    #[test]
    fn what_no_machine_can_have_is_refused_by_name() {
        let error = plan("[{name: net1}]", &PodNetwork::Isolated).unwrap_err();
        let error = error.to_string();
        for part in ["podvisor.io/nics", "net1", "no network"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_translated_guest_reaches_all_by_its_gateway() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let route = |to: &str, gateway: &str| Route {
            destination: net(to),
            gateway: Some(gateway.parse().unwrap()),
            metric: 0,
        };
        let mut nic = SeedNic {
            name: "eth0".into(),
            mac: [2; 6],
            mtu: 1450,
            addresses: vec![net("10.1.0.5/24"), net("fd00::5/64")],
            routes: vec![route("0.0.0.0/0", "10.1.0.1"), route("::/0", "fd00::1")],
        };
        let network = NatNetwork {
            gateway: [198, 18, 0, 1].into(),
            guest: [198, 18, 0, 2].into(),
        };
        translate(&mut nic, network).unwrap();
        assert_eq!(nic.addresses, [net("198.18.0.2/24")]);
        let routes = ["10.1.0.0/24", "0.0.0.0/0"].map(|to| route(to, "198.18.0.1"));
        assert_eq!(nic.routes, routes);
    }
}
