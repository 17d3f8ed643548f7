//! `network-config`: the pod's addresses and routes.
//!
//! In cloud-init's own form, version 1: it is what all its writers (netplan, systemd-networkd,
//! ifupdown) put down in full. Of version 2 only netplan gets everything; for the others metrics are
//! dropped, and `::/0` becomes `::/64` (`cloudinit/net/network_state.py`, `_v2_to_v1_ipcfg`,
//! `_normalize_net_keys`).
//!
//! A family with a gateway that no network of the card leads to (Calico's 169.254.1.1), or with a
//! route without one, is left to DHCP, which can tell such routes. In a file, none but netplan
//! understands `on-link`, and ifupdown's writer cannot have a route without a gateway
//! (`cloudinit/net/networkd.py`, `parse_routes`; `cloudinit/net/eni.py`, `_render_route`).

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use crate::network::{Nic, Resolver, Route};

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    config: Vec<Physical<'a>>,
}

#[derive(Serialize)]
struct Physical<'a> {
    r#type: &'static str,
    name: &'a str,
    mac_address: String,
    mtu: u16,
    #[serde(rename = "accept-ra")]
    accept_ra: bool,
    subnets: Vec<Subnet<'a>>,
}

#[derive(Default, Serialize)]
struct Subnet<'a> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<IpNet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Destination>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    dns_nameservers: &'a [IpAddr],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    dns_search: &'a [String],
}

#[derive(Serialize)]
struct Destination {
    destination: IpNet,
    gateway: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    metric: Option<u32>,
}

/// The document.
pub fn of(nics: &[Nic], resolver: &Resolver) -> Result<String, serde_json::Error> {
    let document = Document {
        version: 1,
        config: nics.iter().map(|nic| physical(nic, resolver)).collect(),
    };
    // JSON is YAML. An address such as 02:00:00:00:00:01 stays text in it.
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn physical<'a>(nic: &'a Nic, resolver: &'a Resolver) -> Physical<'a> {
    let mac: Vec<String> = nic.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut subnets = family(nic, IpAddr::is_ipv4, ["static", "dhcp4"]);
    subnets.extend(family(nic, IpAddr::is_ipv6, ["static6", "dhcp6"]));
    // Once a card is enough.
    if let Some(first) = subnets.iter_mut().find(|subnet| subnet.address.is_some()) {
        first.dns_nameservers = &resolver.servers;
        first.dns_search = &resolver.search;
    }
    Physical {
        r#type: "physical",
        name: &nic.name,
        mac_address: mac.join(":"),
        mtu: nic.mtu,
        // Nothing that an advertisement says is not said here, but where DHCP needs one.
        accept_ra: subnets.iter().any(|subnet| subnet.r#type == "dhcp6"),
        subnets,
    }
}

/// A family's addresses with its routes at the first of them, or its DHCP.
fn family<'a>(
    nic: &Nic,
    is_family: fn(&IpAddr) -> bool,
    [by_hand, by_dhcp]: [&'static str; 2],
) -> Vec<Subnet<'a>> {
    if nic.has_routes_on_link(is_family) {
        return vec![Subnet {
            r#type: by_dhcp,
            ..Subnet::default()
        }];
    }
    let addresses = nic.addresses.iter().filter(|net| is_family(&net.addr()));
    let mut subnets: Vec<_> = addresses
        .map(|address| Subnet {
            r#type: by_hand,
            address: Some(*address),
            ..Subnet::default()
        })
        .collect();
    if let Some(first) = subnets.first_mut() {
        for route in nic
            .routes
            .iter()
            .filter(|r| is_family(&r.destination.addr()))
        {
            add_route(first, route);
        }
    }
    subnets
}

/// The default route has a word of its own, but only one, and without a metric.
fn add_route(subnet: &mut Subnet<'_>, route: &Route) {
    let is_default = route.destination.prefix_len() == 0;
    if is_default && route.metric == 0 && subnet.gateway.is_none() {
        subnet.gateway = route.gateway;
    } else if let Some(gateway) = route.gateway {
        subnet.routes.push(Destination {
            destination: route.destination,
            gateway,
            metric: (route.metric != 0).then_some(route.metric),
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn nic(address: &str, gateway: &str) -> Nic {
        let any = match gateway.contains(':') {
            true => "::/0",
            false => "0.0.0.0/0",
        };
        Nic {
            name: "eth0".into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1450,
            addresses: vec![address.parse().unwrap()],
            routes: vec![route(any, gateway, 0)],
        }
    }

    fn route(destination: &str, gateway: &str, metric: u32) -> Route {
        Route {
            destination: destination.parse().unwrap(),
            gateway: Some(gateway.parse().unwrap()),
            metric,
        }
    }

    fn config(nics: &[Nic]) -> Value {
        let resolver = Resolver {
            servers: vec!["10.96.0.10".parse().unwrap()],
            search: vec!["a.test".into()],
        };
        let mut document: Value = serde_json::from_str(&of(nics, &resolver).unwrap()).unwrap();
        document["config"].take()
    }

    #[test]
    fn a_card_is_found_by_its_address_and_has_all_by_hand() {
        let config = config(&[nic("10.88.0.5/16", "10.88.0.1")]);
        let subnet = json!({
            "type": "static", "address": "10.88.0.5/16", "gateway": "10.88.0.1",
            "dns_nameservers": ["10.96.0.10"], "dns_search": ["a.test"],
        });
        let expected = json!([{
            "type": "physical", "name": "eth0", "mac_address": "02:00:00:00:00:01",
            "mtu": 1450, "accept-ra": false, "subnets": [subnet],
        }]);
        assert_eq!(config, expected);
    }

    #[test]
    fn a_family_with_a_gateway_off_its_link_is_left_to_dhcp() {
        let mut both = nic("10.1.0.5/32", "169.254.1.1");
        let other = nic("fd00::5/64", "fd00::1");
        both.addresses.extend(other.addresses);
        both.routes.extend(other.routes);
        let config = config(&[both, nic("fd00::6/128", "fe80::1")]);
        let subnets = &config[0]["subnets"];
        assert_eq!(subnets[0], json!({"type": "dhcp4"}));
        assert_eq!(subnets[1]["address"], "fd00::5/64");
        assert_eq!(subnets[1]["gateway"], "fd00::1");
        assert_eq!(config[0]["accept-ra"], false);
        assert_eq!(config[1]["subnets"], json!([{"type": "dhcp6"}]));
        assert_eq!(config[1]["accept-ra"], true);
    }

    #[test]
    fn further_routes_keep_their_metrics() {
        let mut nic = nic("10.2.0.5/24", "10.2.0.1");
        nic.routes.push(route("10.9.0.0/16", "10.2.0.9", 200));
        nic.routes.push(route("0.0.0.0/0", "10.2.0.2", 300));
        let config = config(&[nic]);
        let routes = json!([
            {"destination": "10.9.0.0/16", "gateway": "10.2.0.9", "metric": 200},
            {"destination": "0.0.0.0/0", "gateway": "10.2.0.2", "metric": 300},
        ]);
        assert_eq!(config[0]["subnets"][0]["routes"], routes);
        assert_eq!(config[0]["subnets"][0]["gateway"], "10.2.0.1");
    }
}
