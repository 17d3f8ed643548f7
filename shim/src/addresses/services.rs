//! The services of one link: a guest's frame goes in, answers come out.

use std::net::Ipv6Addr;

use etherparse::err::packet::BuildWriteError;

use super::dhcp4::{self, Answer};
use super::frame::{self, Question};
use super::plan::LinkPlan;
use super::router::{self, Discovery};
use super::{SERVER_MAC, dhcp6};

/// The address that DHCPv6 is answered from; a guest answers to its group (RFC 8415, 18).
const DHCP6_SERVER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x0070, 0x6f64, 1, 0);

/// The services. Their only state is what has been logged.
pub struct Services {
    link: LinkPlan,
    is_declined: bool,
}

impl Services {
    /// The services of a link.
    pub fn new(link: LinkPlan) -> Self {
        Self {
            link,
            is_declined: false,
        }
    }

    /// What is answered to a frame of the guest: one frame, or of routers a few for each.
    pub fn answer(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        match frame::question(frame, self.link.mac) {
            Some(Question::Dhcp4(message)) => self.dhcp4(message).into_iter().collect(),
            Some(Question::Dhcp6 { from, message }) => {
                let plan = self.link.ipv6.as_ref();
                let reply = plan.and_then(|plan| dhcp6::answer(&self.link, plan, message));
                let to = (from, self.link.mac);
                let frame = reply.map(|reply| frame::dhcp6(to, DHCP6_SERVER, &reply));
                frame.and_then(built).into_iter().collect()
            }
            Some(Question::Routers) => self.advertise(),
            Some(Question::Neighbour { from, target }) => {
                let plan = self.link.ipv6.as_ref();
                let answer = plan.and_then(|plan| router::neighbour(plan, from, target));
                let to = (!from.is_unspecified()).then_some((from, self.link.mac));
                let frame = answer
                    .and_then(|answer| discovery(&answer, to, frame::NEIGHBOUR_ADVERTISEMENT));
                frame.into_iter().collect()
            }
            None => Vec::new(),
        }
    }

    /// What the guest is told without being asked.
    pub fn advertise(&self) -> Vec<Vec<u8>> {
        let Some(plan) = &self.link.ipv6 else {
            return Vec::new();
        };
        let advertised = router::advertisements(&self.link, plan);
        advertised
            .iter()
            .filter_map(|one| discovery(one, None, frame::ROUTER_ADVERTISEMENT))
            .collect()
    }

    fn dhcp4(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let plan = self.link.ipv4.as_ref()?;
        match dhcp4::answer(&self.link, plan, message)? {
            Answer::Message {
                to,
                broadcast,
                message,
            } => {
                let mac = if broadcast {
                    frame::BROADCAST_MAC
                } else {
                    self.link.mac
                };
                built(frame::dhcp4((to, mac), plan.server, &message))
            }
            Answer::Declined => {
                // A guest can say so as often as it likes.
                if !self.is_declined {
                    let address = plan.address;
                    tracing::warn!(%address, "the guest says that somebody else has its address");
                }
                self.is_declined = true;
                None
            }
        }
    }
}

fn discovery(message: &Discovery, to: Option<(Ipv6Addr, [u8; 6])>, kind: u8) -> Option<Vec<u8>> {
    built(frame::discovery(
        message.from,
        to,
        (kind, message.head),
        &message.body,
    ))
}

/// A frame that is too long for its own length fields is not sent: plans are bounded, so none is.
fn built(frame: Result<Vec<u8>, BuildWriteError>) -> Option<Vec<u8>> {
    frame
        .inspect_err(|error| tracing::debug!(%error, "an answer is not sent"))
        .ok()
}

const _: () = assert!(SERVER_MAC[0] & 3 == 2, "locally administered, not a group");

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use podvisor_seed::{Nic, Resolver, Route};
    use proptest::prelude::*;

    use super::super::frame::tests::{GUEST, asked4, asked6, solicited};
    use super::super::plan::Neighbour;
    use super::super::{dhcp4, dhcp6};
    use super::*;

    fn services() -> Services {
        let route = |to: &str, gateway: &str| Route {
            destination: to.parse().unwrap(),
            gateway: Some(gateway.parse().unwrap()),
            metric: 0,
        };
        let nic = Nic {
            name: "eth0".into(),
            mac: GUEST,
            mtu: 1500,
            addresses: ["10.1.0.5/24", "fd00::5/64"]
                .map(|a| a.parse().unwrap())
                .into(),
            routes: vec![route("0.0.0.0/0", "10.1.0.1"), route("::/0", "fd00::1")],
        };
        let gateway = Neighbour {
            ip: "fd00::1".parse().unwrap(),
            mac: [6; 6],
        };
        Services::new(LinkPlan::new(&nic, &Resolver::default(), "web", &[gateway]))
    }

    #[test]
    fn dhcp_is_answered_to_the_guest_with_a_right_checksum() {
        let discover = dhcp4::tests::message(1, [0; 4].into(), &[]);
        let frames = services().answer(&asked4(&discover));
        let [frame] = frames.as_slice() else {
            panic!("{frames:?}");
        };
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) =
            (packet.net, packet.transport)
        else {
            panic!("{frame:?}");
        };
        assert_eq!(frame[..6], GUEST);
        assert_eq!(ip.header().destination(), [10, 1, 0, 5]);
        assert_eq!(ip.header().source(), [10, 1, 0, 1]);
        let checksum = udp
            .to_header()
            .calc_checksum_ipv4(&ip.header().to_header(), udp.payload());
        assert_eq!(checksum, Ok(udp.checksum()));
    }

    #[test]
    fn every_question_has_its_answer() {
        let from: Ipv6Addr = "fe80::9".parse().unwrap();
        let mut services = services();
        let solicit = dhcp6::tests::message(1, &[(3, &[0; 12])]);
        assert_eq!(services.answer(&asked6(from, &solicit)).len(), 1);
        let advertised = services.answer(&solicited(from, 133, &[], 255));
        assert_eq!(advertised, services.advertise());
        let [router] = advertised.as_slice() else {
            panic!("{advertised:?}");
        };
        // Its sender is then asked for, and found.
        let sender = &router[22..38];
        let answers = services.answer(&solicited(from, 135, sender, 255));
        assert_eq!(answers[0][..6], GUEST);
        assert_eq!(answers[0][54], frame::NEIGHBOUR_ADVERTISEMENT);
        assert_eq!(
            services.answer(&solicited(from, 135, &[1; 16], 255)).len(),
            0
        );
    }

    proptest! {
        #[test]
        fn no_frame_is_too_much(bytes in prop::collection::vec(any::<u8>(), 0..400), kind in any::<u8>()) {
            let from = Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
            let mut services = services();
            for frame in [bytes.clone(), asked4(&bytes), asked6(from, &bytes), solicited(from, kind, &bytes, 255)] {
                prop_assert!(services.answer(&frame).len() <= 1);
            }
        }
    }
}
