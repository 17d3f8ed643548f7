//! A machine's network: cards beside the pod's interfaces, and what the machine is told of them.

use std::sync::Arc;

use podvisor_annotations::value::nic::{Nic as Annotated, NicMode};
use podvisor_seed::{Nic as SeedNic, Resolver};

use super::error::TaskError;
use crate::addresses::{self, LinkPlan};
use crate::guest::boot::{BootError, BootTools, open_taps, redirect};
use crate::guest::card::Card;
use crate::host::{CardRequest, HostError, LinkSocket, MacRequest, NetworkRequest, Nic};
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
            if nic.mode == Some(NicMode::Nat) {
                return Err(invalid(
                    nic,
                    "mode nat is not carried out by this shim: the guest has the pod's addresses (redirect)",
                ));
            }
            let name = nic.name.as_str().to_owned();
            plan.places
                .extend(nic.pci.map(|slot| (name.clone(), slot.get())));
            plan.requests.push(CardRequest {
                name,
                mac: nic.mac.map(|mac| mac.octets()),
                mtu: nic.mtu.map(|mtu| mtu.get()),
                queues: nic.queues.map_or(1, |queues| queues.get()),
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
    let opened = open_taps(network, plan.requests.clone(), tools).await;
    let nics = opened.map_err(|error| match error {
        BootError::Host(error) => annotated(error),
        other => other.into(),
    })?;
    let sockets = open_links(network, tools).await?;
    let mut told = addresses::nics(&redirect(network, tools).await?);
    for nic in &mut told {
        let card = nics.iter().find(|card| card.name == nic.name);
        let mtu = card.and_then(|card| u16::try_from(card.mtu).ok());
        nic.mtu = mtu.unwrap_or(nic.mtu);
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
        HostError::NoInterface { .. } | HostError::Mtu { .. } => TaskError::Nics(error),
        other => other.into(),
    }
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
        let nics = "[{name: net1, mac: '52:54:00:12:34:56', mtu: 1400, queues: 4}, {name: eth0, pci: '00:0b.0'}]";
        let plan = plan(nics, &network).unwrap();
        let expected = [
            CardRequest {
                name: "net1".into(),
                mac: Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
                mtu: Some(1400),
                queues: 4,
            },
            CardRequest {
                name: "eth0".into(),
                mac: None,
                mtu: None,
                queues: 1,
            },
        ];
        assert_eq!(plan.requests, expected);
        assert_eq!(plan.places, [("eth0".to_owned(), 11)]);
    }

    #[test]
    fn what_no_machine_can_have_is_refused_by_name() {
        let network = PodNetwork::Namespace("/run/netns/a".into());
        for (nics, network, why) in [
            ("[{name: eth0}]", &PodNetwork::Isolated, "no network"),
            ("[{name: net1, mode: nat}]", &network, "nat"),
        ] {
            let error = plan(nics, network).unwrap_err().to_string();
            assert!(
                error.contains("podvisor.io/nics") && error.contains(why),
                "{error}"
            );
        }
    }
}
