//! Networks other than the node's own: several interfaces, routes of every kind, one family only.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::{Container, Cri, Handler, Pod, PodBuilder, PodNetworks, wait};

use crate::case::{Case, gate};

pub fn cases() -> Vec<Case> {
    vec![
        gate("the_guest_has_every_interface_route_and_rule", everything),
        gate("pods_reach_each_other_without_ipv4", ipv6_only),
    ]
}

const DUAL_STACK: &str = r#"[[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd00:77::/64"}]]"#;
const IPV6_ONLY: &str = r#"[[{"subnet": "fd00:78::/64"}]]"#;

/// Gives a pod `net1` on a second bridge, numbered by the pod's first address, and all that a
/// plugin may configure beside it.
const SECOND_INTERFACE: &str = r#"
inside() { nsenter --net="$CNI_NETNS" "$@"; }
n=$(inside ip -o -4 address show eth0 | sed 's,.*inet 10.77.0.\([0-9]*\)/.*,\1,')
if ! ip link show second > /dev/null 2>&1; then
    ip link add second type bridge
    ip address add 10.79.0.1/24 dev second
    ip -6 address add fd00:79::1/64 dev second nodad
fi
ip link set second up
ip link add "second$n" type veth peer name net1 netns "$(basename "$CNI_NETNS")"
ip link set "second$n" master second up
inside sysctl -q -w net.ipv6.conf.net1.accept_dad=0
inside ip link set net1 mtu 1400 up
inside ip address add "10.79.0.$n/24" dev net1
inside ip address add "fd00:79::$n/64" dev net1 nodad
inside ip -batch - << END
route add default via 10.77.0.1
route add 10.100.0.0/16 via 10.79.0.1 mtu 1300 initcwnd 20
route add 10.101.0.0/16 nexthop via 10.77.0.1 nexthop via 10.79.0.1 weight 2
route add 10.102.0.0/16 via 169.254.1.1 dev net1 onlink
route add 10.105.0.0/16 via inet6 fd00:79::1 dev net1
route add blackhole 10.103.0.0/16
route add default via 10.79.0.1 table 100
route del 10.79.0.0/24 dev net1
route add 10.79.0.0/25 dev net1 scope link
rule add from 10.79.0.$n table 100 priority 100
rule add not fwmark 0x1/0xff uidrange 1000-2000 ipproto tcp dport 80-90 table 100 priority 200
rule add to 10.104.0.0/16 iif eth0 prohibit priority 300
neighbour add 10.79.0.77 lladdr 02:00:00:00:00:77 dev net1 nud permanent
END
inside ip -6 -batch - << END
route add fd00:101::/48 nexthop via fd00:77::1 nexthop via fd00:79::1 weight 2
route add fd00:100::/48 via fd00:79::1 mtu 1290 metric 77
rule add from fd00:79::$n table 100 priority 100
END
"#;

/// The node's own `ip`: busybox knows less.
const SHOW: &str = r#"
ip() {
    /node/lib64/ld-linux-x86-64.so.2 --library-path /node/lib/x86_64-linux-gnu /node/bin/ip "$@"
}
for link in lo eth0 net1; do echo "$link: $(cat /sys/class/net/$link/mtu)"; done
ip -4 -brief address show scope global
ip -6 -brief address show scope global
ip route show table all | grep -v 'table local' | sort
ip -6 route show table all | grep -v -e 'table local' -e ^fe80 -e ^multicast | sort
ip rule
ip -6 rule
ip neighbour show nud permanent
cat /proc/sys/net/ipv4/ping_group_range /proc/sys/net/ipv4/ip_unprivileged_port_start
cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/net/core/somaxconn
cat /etc/resolv.conf
"#;

/// What a pod sees of its network, without its own addresses and the numbers of the host's links.
fn seen(pod: &Pod<'_>, container: &Container<'_, '_>) -> Result<String> {
    let mut text = String::new();
    for line in container.shell(SHOW)?.lines() {
        for word in line.split_whitespace() {
            let name = word.split('@').next().unwrap_or_default();
            text = text + name + " ";
        }
        text.push('\n');
    }
    let number = number(pod)?;
    for prefix in ["10.77.0.", "10.79.0.", "fd00:79::"] {
        for end in ['/', ' '] {
            let own = format!("{prefix}{number}{end}");
            text = text.replace(&own, &format!("{prefix}N{end}"));
        }
    }
    for address in pod.addresses()? {
        text = text.replace(&address, "ADDRESS");
    }
    Ok(text)
}

/// The last number of a pod's IPv4 addresses.
fn number(pod: &Pod<'_>) -> Result<String> {
    let addresses = pod.addresses()?;
    let address = addresses.iter().find(|address| address.contains('.'));
    let (_, number) = address
        .and_then(|address| address.rsplit_once('.'))
        .context("no IPv4 address")?;
    Ok(number.to_owned())
}

fn everything(cri: &Cri) -> Result<()> {
    let _networks =
        PodNetworks::set(cri, "first", DUAL_STACK, SECOND_INTERFACE)?.with_link("second");
    let machine = PodBuilder::new(cri, Handler::Podvisor, "machine").run()?;
    let plain = PodBuilder::new(cri, Handler::Runc, "plain").run()?;
    let idle = |pod| Pod::container(pod, "idle").mount_read_only("/usr".as_ref(), "/node");
    let (in_machine, in_plain) = (idle(&machine).start()?, idle(&plain).start()?);
    let (ours, runcs) = (seen(&machine, &in_machine)?, seen(&plain, &in_plain)?);
    ensure!(ours == runcs, "VM pod:\n{ours}\n\nrunc pod:\n{runcs}");
    let number = number(&plain)?;
    for address in [
        &format!("10.79.0.{number}"),
        &format!("fd00:79::{number}"),
        "127.0.0.1",
        "::1",
    ] {
        in_machine.shell(&format!("ping -c 1 -W 10 {address}"))?;
    }
    Ok(())
}

fn ipv6_only(cri: &Cri) -> Result<()> {
    let _networks = PodNetworks::set(cri, "sixonly", IPV6_ONLY, "")?;
    let machine = PodBuilder::new(cri, Handler::Podvisor, "machine").run()?;
    let plain = PodBuilder::new(cri, Handler::Runc, "plain").run()?;
    let serve = "mkdir /www; echo here > /www/page; httpd -f -p 80 -h /www";
    let machine_end = machine.container("server").script(serve).start()?;
    let plain_end = plain.container("server").script(serve).start()?;
    for (from, to) in [(&machine_end, &plain), (&plain_end, &machine)] {
        let addresses = to.addresses()?;
        let [address] = addresses.as_slice() else {
            anyhow::bail!("one address, not {addresses:?}");
        };
        let script = format!("wget -q -T 20 -O - http://[{address}]/page");
        wait::until("page", Duration::from_secs(30), || {
            Ok((from.exec(&["sh", "-c", &script])?.stdout == "here\n").then_some(()))
        })?;
    }
    let addresses = machine_end.shell("ip -4 -o addr show eth0")?;
    ensure!(
        addresses.is_empty(),
        "IPv4 came from somewhere: {addresses}"
    );
    Ok(())
}
