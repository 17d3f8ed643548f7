//! Machines that are told nothing of their network: all that they know of it they asked for, by DHCP, router
//! solicitations and DHCPv6. The busybox machine never reads what its seed says of networks.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::{Console, Cri, Pod, PodNetworks, wait};

use super::{BUSYBOX, debian, logged_in, machine, machine_pod, page};
use crate::case::{Case, long};

/// For an answer, on an emulated node.
const ANSWER: Duration = Duration::from_secs(60);
const DOMAINS: [&str; 2] = ["default.svc.cluster.local", "cluster.local"];

pub fn cases() -> Vec<Case> {
    vec![
        long("a_machine_asks_for_its_addresses", dual_stack),
        long("a_machine_asks_for_its_address_without_ipv4", ipv6_only),
        long("a_debian_machine_asks_for_its_addresses", networkd),
    ]
}

const DUAL_STACK: &str = r#"[[{"subnet": "10.74.0.0/24"}], [{"subnet": "fd00:74::/64"}]]"#;
/// A pod with an address that shares its network with nobody, gateways outside of it, and further
/// routes; the node answers at the end of each.
const OFF_LINK: &str = r#"
inside() { nsenter --net="$CNI_NETNS" "$@"; }
n=$(inside ip -o -4 address show eth0 | sed 's,.*inet 10.74.0.\([0-9]*\)/.*,\1,')
for address in 169.254.1.1 10.102.0.1 10.103.0.9; do
    ip address replace $address/32 dev asked
done
for address in fe80::1/64 fd00:100::1 fd00:101::9 fd00:102::1; do
    ip -6 address replace $address dev asked nodad
done
inside ip link set eth0 mtu 1400
inside ip address delete "10.74.0.$n/24" dev eth0
inside ip address add "10.74.0.$n/32" dev eth0
inside ip -batch - << END
route add 169.254.1.1 dev eth0 scope link
route add default via 169.254.1.1 dev eth0
route add 10.74.0.1 dev eth0 scope link
route add 10.102.0.0/16 via 10.74.0.1 dev eth0
route add 10.103.0.0/24 dev eth0 scope link
END
inside ip -6 -batch - << END
route add default via fd00:74::1
route add fd00:100::/48 via fd00:74::1
route add fd00:101::/64 dev eth0
route add fd00:102::/48 via fe80::1 dev eth0
END
"#;

/// By DHCP, which the machine's own script asks as it boots.
fn dual_stack(cri: &Cri) -> Result<()> {
    let _networks = PodNetworks::set(cri, "asked", DUAL_STACK, OFF_LINK)?;
    let pod = machine_pod(cri, "asking").dns(&["10.96.0.10", "fd00:96::a"], &DOMAINS);
    let pod = pod.run()?;
    let machine = machine(&pod, BUSYBOX).start()?;
    let mut console = logged_in(&machine)?;
    by_dhcp(&address(&pod, '.')?, &mut console)?;
    let own = address(&pod, ':')?;
    by_advertisement(&mut console)?;
    let routes = console.run("ip -6 route")?;
    for route in [
        "fd00:74::/64 dev eth0",
        "fd00:101::/64 dev eth0",
        "fd00:100::/48 via fe80::70:6f64:0:1 dev eth0",
        "fd00:102::/48 via fe80::1 dev eth0",
        "default via fe80::70:6f64:0:1 dev eth0",
    ] {
        ensure!(routes.contains(route), "{route} is not in {routes}");
    }
    by_dhcp6(&own, &mut console)?;
    // Taking the card down took what DHCP had brought.
    console.run("udhcpc -n -q -i eth0 -s /etc/udhcpc")?;
    for (family, own) in [('.', address(&pod, '.')?), (':', own)] {
        let ends: &[&str] = match family {
            '.' => &["169.254.1.1", "10.102.0.1", "10.103.0.9"],
            _ => &["fd00:74::1", "fd00:100::1", "fd00:101::9", "fd00:102::1"],
        };
        reached(&own, ends, &mut console)?;
    }
    Ok(())
}

const IPV6_ONLY: &str = r#"[[{"subnet": "fd00:73::/64"}]]"#;
const IPV6_ROUTE: &str = r#"
ip -6 address replace fd00:100::1 dev asksix nodad
nsenter --net="$CNI_NETNS" ip -6 route add default via fd00:73::1
"#;

fn ipv6_only(cri: &Cri) -> Result<()> {
    let _networks = PodNetworks::set(cri, "asksix", IPV6_ONLY, IPV6_ROUTE)?;
    let pod = machine_pod(cri, "asksix").dns(&["fd00:96::a"], &DOMAINS);
    let pod = pod.run()?;
    let machine = machine(&pod, BUSYBOX).start()?;
    let mut console = logged_in(&machine)?;
    let own = address(&pod, ':')?;
    by_advertisement(&mut console)?;
    by_dhcp6(&own, &mut console)?;
    reached(&own, &["fd00:73::1", "fd00:100::1"], &mut console)?;
    let ipv4 = console.run("ip -o -4 address show dev eth0")?;
    ensure!(ipv4.is_empty(), "IPv4 came from somewhere: {ipv4}");
    Ok(())
}

/// The pod's address of a family, by what its addresses have in them.
fn address(pod: &Pod<'_>, mark: char) -> Result<String> {
    let addresses = pod.addresses()?;
    let mut of_family = addresses.into_iter().filter(|text| text.contains(mark));
    of_family.next().context("no such address")
}

/// Address, routes (RFC 3442), packet length and name servers; gateways that no network of the address
/// leads to have routes of their own.
fn by_dhcp(own: &str, console: &mut Console) -> Result<()> {
    let told = wait::until("an IPv4 address", ANSWER, || {
        let told = console.run("ip -o -4 address show dev eth0; cat /etc/resolv.conf; true")?;
        Ok(told.contains("nameserver").then_some(told))
    })?;
    let search = format!("search {}", DOMAINS.join(" "));
    for part in [&format!("inet {own}/32 "), "nameserver 10.96.0.10", &search] {
        ensure!(told.contains(part), "{part:?} is not in {told}");
    }
    let routes = console.run("ip route | sed 's/ *$//' | sort")?;
    let expected = [
        "10.102.0.0/16 via 10.74.0.1 dev eth0",
        "10.103.0.0/24 dev eth0 scope link",
        "10.74.0.1 dev eth0 scope link",
        "169.254.1.1 dev eth0 scope link",
        "default via 169.254.1.1 dev eth0",
    ];
    ensure!(routes == expected.join("\n"), "routes: {routes}");
    let mtu = console.run("cat /sys/class/net/eth0/mtu")?;
    ensure!(mtu == "1400", "MTU: {mtu}");
    Ok(())
}

/// The kernel asks for routers when its card comes up, and is told routes as well where it wants that.
fn by_advertisement(console: &mut Console) -> Result<()> {
    console.run(
        "cd /proc/sys/net/ipv6/conf/eth0; echo 0 > accept_dad; echo 64 > accept_ra_rt_info_max_plen; \
         ip link set eth0 down; ip link set eth0 up",
    )?;
    wait::until("a router", ANSWER, || {
        let routes = console.run("ip -6 route")?;
        Ok(routes.contains("default via fe80::").then_some(()))
    })?;
    // Addresses come by DHCPv6 alone.
    let made = console.run("ip -o -6 address show dev eth0 scope global")?;
    ensure!(made.is_empty(), "made of a prefix: {made}");
    Ok(())
}

/// Asks for the address, and takes it.
fn by_dhcp6(own: &str, console: &mut Console) -> Result<()> {
    console.run(
        "printf '#!/bin/sh\\nenv > /run/dhcp6-$1\\n' > /run/dhcp6; chmod 755 /run/dhcp6; \
         udhcpc6 -n -q -i eth0 -s /run/dhcp6",
    )?;
    let told = console.run("cat /run/dhcp6-bound")?;
    let value = |name: &str| told.lines().find_map(|line| line.strip_prefix(name));
    for (name, expected) in [("ipv6=", own), ("dns=", "fd00:96::a")] {
        let address: Ipv6Addr = value(name).context(told.clone())?.parse()?;
        ensure!(address == expected.parse::<Ipv6Addr>()?, "{told}");
    }
    let search = value("search=");
    ensure!(search == Some(&DOMAINS.join(" ")), "search domains: {told}");
    console
        .run(&format!("ip -6 address add {own}/128 dev eth0"))
        .map(drop)
}

/// The machine reaches the ends of its routes, and is reached.
fn reached(own: &str, ends: &[&str], console: &mut Console) -> Result<()> {
    for end in ends {
        let there = format!("ping -c 1 -W 20 {end} > /dev/null && echo there");
        let said = console.run(&there);
        ensure!(said.is_ok_and(|said| said == "there"), "no echo of {end}");
    }
    let server = if own.contains(':') {
        format!("[{own}]:80")
    } else {
        format!("{own}:80")
    };
    let text = page(&server)?;
    ensure!(text.ends_with("here\n"), "{text}");
    Ok(())
}

/// systemd-networkd asks for routers, and by DHCPv6 only because of what they say.
const ASK: &str = "printf '[Match]\\nType=ether\\n[Network]\\nDHCP=ipv4\\nIPv6AcceptRA=yes\\n\
    [DHCPv4]\\nUseMTU=yes\\nUseDomains=yes\\n[IPv6AcceptRA]\\nUseDomains=yes\\n' > /tmp/ask.network; \
    sudo install -D -m 644 /tmp/ask.network /run/systemd/network/10-ask.network; \
    sudo systemctl restart systemd-networkd";

/// What systemd makes of the answers, in a machine whose user wants no network of cloud-init's.
fn networkd(cri: &Cri) -> Result<()> {
    let _networks = PodNetworks::set(cri, "asked", DUAL_STACK, OFF_LINK)?;
    let pod = machine_pod(cri, "asking")
        .memory_mib(512)
        .dns(&["10.96.0.10", "fd00:96::a"], &DOMAINS)
        .annotation("podvisor.io/cloud-init", "/etc/seed")
        .run()?;
    let seed = pod.volume("kubernetes.io~secret/seed")?;
    fs::write(seed.join("user-data"), debian::user_data())?;
    fs::write(seed.join("network-config"), "config: disabled\n")?;
    let machine = machine(&pod, debian::DEBIAN).mount_read_only(&seed, "/etc/seed");
    let machine = machine.start()?;
    let mut console = debian::logged_in(&machine)?;
    let told = console.run("ip -o address show scope global")?;
    ensure!(told.is_empty(), "told without a question: {told}");
    console.run(ASK)?;
    let own = pod.addresses()?;
    wait::until("both addresses", ANSWER, || {
        let seen = console.run("ip -o address show scope global")?;
        let has = |own: &String| {
            ["32", "128"]
                .iter()
                .any(|len| seen.contains(&format!(" {own}/{len} ")))
        };
        Ok(own.iter().all(has).then_some(()))
    })
    .with_context(|| {
        console
            .run("networkctl status --no-pager -n 50")
            .unwrap_or_default()
    })?;
    // networkd gives routes next hops of their own (nhid N).
    let v6 = "ip -6 route | sed 's/nhid [0-9]* //'";
    for (question, told) in [
        ("ip route", "default via 169.254.1.1 "),
        ("ip route", "10.102.0.0/16 via 10.74.0.1 "),
        ("ip route", "10.103.0.0/24 dev "),
        (v6, "default via fe80::70:6f64:0:1 "),
        (v6, "fd00:102::/48 via fe80::1 "),
        (v6, "fd00:101::/64 dev "),
        ("cat /sys/class/net/e*/mtu", "1400"),
    ] {
        let seen = console.run(question)?;
        ensure!(seen.contains(told), "{told:?} is not in {seen}");
    }
    sources(&mut console)
}

/// Who told of name servers and domains.
fn sources(console: &mut Console) -> Result<()> {
    let told =
        console.run("networkctl --json=short status \"$(ls /sys/class/net | grep -v lo)\"")?;
    let told: serde_json::Value = serde_json::from_str(&told)?;
    let by = |list: &str, source: &str, key: &str, value: &serde_json::Value| {
        let list = told.get(list).and_then(serde_json::Value::as_array);
        let is_it = |one: &serde_json::Value| {
            one.get("ConfigSource").is_some_and(|by| by == source) && one.get(key) == Some(value)
        };
        list.is_some_and(|list| list.iter().any(is_it))
    };
    for (server, source) in [
        ("10.96.0.10", "DHCPv4"),
        ("fd00:96::a", "NDisc"),
        ("fd00:96::a", "DHCPv6"),
    ] {
        let octets = match server.parse()? {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let known = by("DNS", source, "Address", &octets.into());
        ensure!(known, "{server} is not known by {source}: {told}");
    }
    for source in ["DHCPv4", "NDisc"] {
        let domain = DOMAINS[0];
        let known = by("SearchDomains", source, "Domain", &domain.into());
        ensure!(known, "{domain} is not known by {source}: {told}");
    }
    Ok(())
}
