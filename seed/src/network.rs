//! A machine's network in types, for its seed and for those who answer its questions.

use std::net::IpAddr;

use ipnet::IpNet;

/// Servers and search domains that are told; resolv.conf(5) stops at 3 and 32.
const SERVERS_MAX: usize = 8;
const SEARCH_MAX: usize = 32;
/// The longest name (RFC 1035).
const NAME_LEN_MAX: usize = 253;

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Its name in the pod's namespace, which it gets in the machine.
    pub name: String,
    /// Its hardware address, by which it is found.
    pub mac: [u8; 6],
    /// Bytes of its largest packet.
    pub mtu: u16,
    /// Its addresses, each in its network.
    pub addresses: Vec<IpNet>,
    /// Routes out of it, but for those to the networks of its addresses.
    pub routes: Vec<Route>,
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub destination: IpNet,
    /// By way of whom; None when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The lower, the more preferred; 0 for the kernel's choice.
    pub metric: u32,
}

/// How names are resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Name servers.
    pub servers: Vec<IpAddr>,
    /// Domains that a name is tried in.
    pub search: Vec<String>,
}

impl Nic {
    /// Whether the card's own networks lead to this gateway.
    pub fn reaches(&self, gateway: IpAddr) -> bool {
        self.addresses
            .iter()
            .any(|address| address.contains(&gateway) && address.addr() != gateway)
    }

    /// Whether a family's routes need more than addresses and gateways to be told: one leads to a
    /// gateway that the card's addresses do not lead to, or to none.
    pub fn has_routes_on_link(&self, is_family: fn(&IpAddr) -> bool) -> bool {
        let mut family = self
            .routes
            .iter()
            .filter(|route| is_family(&route.destination.addr()));
        family.any(|route| !route.gateway.is_some_and(|gateway| self.reaches(gateway)))
    }
}

impl Resolver {
    /// What a resolv.conf(5) says. What is not understood there is left out, as resolvers do.
    pub fn parse(resolv_conf: &str) -> Self {
        let mut resolver = Self::default();
        for line in resolv_conf.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    resolver.servers.extend(words.next().and_then(server));
                }
                // The last one counts.
                Some("search" | "domain") => {
                    resolver.search = words.filter_map(domain).take(SEARCH_MAX).collect();
                }
                _ => {}
            }
        }
        resolver.servers.truncate(SERVERS_MAX);
        resolver
    }
}

/// A server that a machine can reach: not the host's own.
fn server(word: &str) -> Option<IpAddr> {
    let server: IpAddr = word.parse().ok()?;
    (!server.is_loopback() && !server.is_unspecified()).then_some(server)
}

fn domain(word: &str) -> Option<String> {
    let name = word.trim_end_matches('.');
    let label = |label: &str| {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(valid)
    };
    (name.len() <= NAME_LEN_MAX && name.split('.').all(label)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read_as_a_resolver_reads_it() {
        let resolver = Resolver::parse(
            "# by hand\nsearch old.test\nnameserver 10.96.0.10\nnameserver fd00::a\n\
             nameserver 127.0.0.53\nnameserver bad\noptions ndots:5\nsearch a.test. b_1.test ..bad\n",
        );
        let servers: Vec<IpAddr> = vec!["10.96.0.10".parse().unwrap(), "fd00::a".parse().unwrap()];
        assert_eq!(resolver.servers, servers);
        assert_eq!(resolver.search, ["a.test", "b_1.test"]);
    }

    #[test]
    fn a_gateway_outside_of_all_networks_is_told() {
        let mut nic = Nic {
            name: "eth0".into(),
            mac: [2; 6],
            mtu: 1500,
            addresses: vec!["10.1.0.5/32".parse().unwrap()],
            routes: vec![Route {
                destination: "0.0.0.0/0".parse().unwrap(),
                gateway: Some("169.254.1.1".parse().unwrap()),
                metric: 0,
            }],
        };
        assert!(nic.has_routes_on_link(IpAddr::is_ipv4));
        assert!(!nic.has_routes_on_link(IpAddr::is_ipv6));
        nic.routes[0].gateway = Some("10.1.0.1".parse().unwrap());
        nic.addresses = vec!["10.1.0.5/24".parse().unwrap()];
        assert!(!nic.has_routes_on_link(IpAddr::is_ipv4));
    }
}
