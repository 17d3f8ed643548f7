//! The annotations that say what a machine's volumes and networks are to it, looked at from inside of it.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::{Console, Cri, LoopDevice, Pod, PodNetworks};

use super::{BUSYBOX, REPORTING, ensure_seen, logged_in, machine, machine_pod, page};
use crate::case::{Case, long};

const DATA_LEN: u64 = 16 << 20;

pub fn cases() -> Vec<Case> {
    vec![
        long(
            "a_machines_disks_and_cards_are_as_annotated",
            disks_and_cards,
        ),
        long("a_machine_can_have_an_address_of_its_own", private_address),
    ]
}

/// Gives a pod `net1`, a pair of interfaces of which one is the node's.
const SECOND_INTERFACE: &str = r#"
n=$(nsenter --net="$CNI_NETNS" ip -o -4 address show eth0 | sed 's,.*inet 10.76.0.\([0-9]*\)/.*,\1,')
ip link add "cards$n" mtu 1450 type veth peer name net1 mtu 1450 netns "$(basename "$CNI_NETNS")"
ip address add 10.75.0.1/24 dev "cards$n"
ip link set "cards$n" up
nsenter --net="$CNI_NETNS" ip link set net1 up
nsenter --net="$CNI_NETNS" ip address add 10.75.0.2/24 dev net1
"#;
const CARDS: &str = "[{name: eth0, mac: '52:54:00:12:34:56', mtu: 1400, pci: '00:0b.0'}, \
    {name: net1, queues: 2, pci: '00:1c.0'}]";

/// What a pod is told whose cards are not to be had.
fn cards_refused(cri: &Cri, cards: &str, reasons: &[&str]) -> Result<()> {
    let pod = machine_pod(cri, "refused").annotation("podvisor.io/nics", cards);
    let pod = pod.run()?;
    let refused = machine(&pod, BUSYBOX).start();
    let refused = refused.err().context("it was started")?;
    let text = format!("{refused:#}");
    let missing = reasons.iter().find(|reason| !text.contains(**reason));
    ensure!(missing.is_none(), "{cards}: {text}");
    Ok(())
}

fn disks_and_cards(cri: &Cri) -> Result<()> {
    let _networks = PodNetworks::set(
        cri,
        "cards",
        r#"[[{"subnet": "10.76.0.0/24"}]]"#,
        SECOND_INTERFACE,
    )?;
    cards_refused(
        cri,
        "[{name: net7}]",
        &["podvisor.io/nics", "net7", "eth0, net1"],
    )?;
    cards_refused(
        cri,
        "[{name: net1, mtu: 1451}]",
        &["podvisor.io/nics", "net1", "1450"],
    )?;
    let (data, slow) = (LoopDevice::new(DATA_LEN)?, LoopDevice::new(DATA_LEN)?);
    let disks = "- {path: /, cache: unsafe}\n\
         - {path: /dev/data, ro: true, serial: DATA01, pci: '00:0a.0', queues: 1, cache: none, bps: 2Mi, \
           iothread: 1}\n\
         - {path: /dev/slow, serial: SLOW01, iops: 20, cache: writethrough, iothread: 1}\n";
    let pod = machine_pod(cri, "disks")
        .annotation("podvisor.io/cpus", "2")
        .annotation("podvisor.io/disks", disks)
        .annotation("podvisor.io/nics", CARDS)
        .run()?;
    let machine = machine(&pod, BUSYBOX).device(data.path(), "/dev/data", "mrw");
    let machine = machine.device(slow.path(), "/dev/slow", "mrw").start()?;
    let mut console = logged_in(&machine)?;
    console.run(
        "for d in /sys/block/vd*; do ln -s $d /run/$(cat $d/serial | tr -c 'A-Za-z0-9' _); done",
    )?;
    ensure_seen(
        &mut console,
        &[
            ("cat /run/DATA01/ro", "1"),
            ("ls /run/DATA01/mq | wc -l", "1"),
            // As many as processors, where nothing else is said.
            ("ls /run/boot/mq | wc -l", "2"),
            (
                "readlink -f /run/DATA01 | grep -o 0000:00:0a.0",
                "0000:00:0a.0",
            ),
            ("cat /run/SLOW01/queue/write_cache", "write through"),
            ("cat /run/boot/queue/write_cache", "write back"),
        ],
    )?;
    let threads = threads(&pod)?;
    let of_disks = |name: &str| threads.iter().filter(|thread| *thread == name).count();
    let seen = ["boot", "disks1", "DATA01", "SLOW01"].map(of_disks);
    ensure!(seen == [1, 1, 0, 0], "the shim's threads: {threads:?}");
    cards(&pod, &mut console)?;
    rates(&mut console)?;
    let write =
        console.run("dd if=/dev/zero of=/dev/$(basename $(readlink -f /run/DATA01)) count=1");
    ensure!(write.is_err(), "wrote to a read-only disk");
    Ok(())
}

/// The names of the threads of the machine's shim.
fn threads(pod: &Pod<'_>) -> Result<Vec<String>> {
    fs::read_dir(format!("/proc/{}/task", pod.shim_pid()?))?
        .map(|task| {
            Ok(fs::read_to_string(task?.path().join("comm"))?
                .trim()
                .to_owned())
        })
        .collect()
}

/// How long reads take of the disks that are slower than they could be.
fn rates(console: &mut Console) -> Result<()> {
    // 20 requests a second, of which a second's worth may come at once.
    let took = console.run(
        "d=/dev/$(basename $(readlink -f /run/SLOW01)); a=$(cut -d . -f 1 /proc/uptime); i=0; \
         while [ $i -lt 100 ]; do dd if=$d of=/dev/null bs=4096 count=1 skip=$i iflag=direct \
         2> /dev/null || exit 1; i=$((i + 1)); done; b=$(cut -d . -f 1 /proc/uptime); echo $((b - a))",
    )?;
    ensure!(took.parse::<u32>()? >= 3, "100 reads in {took} s");
    // 2 MiB a second, in the same way.
    let took = console.run(
        "d=/dev/$(basename $(readlink -f /run/DATA01)); a=$(cut -d . -f 1 /proc/uptime); \
         dd if=$d of=/dev/null bs=65536 count=160 iflag=direct 2> /dev/null || exit 1; \
         b=$(cut -d . -f 1 /proc/uptime); echo $((b - a))",
    )?;
    ensure!(took.parse::<u32>()? >= 3, "10 MiB in {took} s");
    Ok(())
}

/// Both cards, by their places on the bus, and the network behind them.
fn cards(pod: &Pod<'_>, console: &mut Console) -> Result<()> {
    console.run(
        "for n in 0b 1c; do ln -s /sys/bus/pci/devices/0000:00:$n.0/virtio*/net/* /run/card$n; done",
    )?;
    ensure_seen(
        console,
        &[
            ("cat /run/card0b/address", "52:54:00:12:34:56"),
            ("cat /run/card0b/mtu /run/card1c/mtu", "1400\n1450"),
            ("ls -d /run/card0b/queues/*x-* | wc -l", "2"),
            ("ls -d /run/card1c/queues/*x-* | wc -l", "4"),
            // Addresses are those of the interfaces; by DHCP, which tells the MTU as well.
            (
                "ip -o -4 address show dev $(basename $(readlink /run/card1c)) | grep -o 10.75.0.2/24",
                "10.75.0.2/24",
            ),
            (
                "ping -c 1 -W 10 10.75.0.1 > /dev/null && echo there",
                "there",
            ),
            (
                "ping -c 1 -W 10 10.76.0.1 > /dev/null && echo there",
                "there",
            ),
        ],
    )?;
    // Connections of different flows, which the host spreads over the queues.
    let own = console.run("ip -o -4 address show")?;
    for address in pod.addresses()? {
        ensure!(own.contains(&address), "{address} is not in {own}");
    }
    for _ in 0..8 {
        let text = page("10.75.0.2:80")?;
        ensure!(text.ends_with("here\n"), "{text}");
    }
    Ok(())
}

/// The pod's address stays where it is, and leads to the machine.
fn private_address(cri: &Cri) -> Result<()> {
    let pod = machine_pod(cri, "private")
        .annotation("podvisor.io/nics", "[{name: eth0, mode: nat}]")
        .annotation("podvisor.io/balloon", "off")
        .annotation("podvisor.io/cloud-init", "/etc/seed");
    let pod = pod.run()?;
    let seed = pod.volume("kubernetes.io~secret/seed")?;
    fs::write(seed.join("user-data"), "#!/bin/sh\n# of a volume\n")?;
    let machine = machine(&pod, BUSYBOX).mount_read_only(&seed, "/etc/seed");
    let machine = machine.start()?;
    let mut console = logged_in(&machine)?;
    let addresses = pod.addresses()?;
    let address = addresses.iter().find(|address| address.contains('.'));
    let address = address.context("no IPv4 address")?.as_str();
    ensure_seen(
        &mut console,
        &[
            (
                "ip -o -4 address show dev eth0 | grep -o 198.18.0.2/24",
                "198.18.0.2/24",
            ),
            (
                "ip route | grep -o '^default via [0-9.]*'",
                "default via 198.18.0.1",
            ),
            ("grep -o 10.96.0.10 /etc/resolv.conf", "10.96.0.10"),
            ("tail -n 1 /run/seed/user-data", "# of a volume"),
            // There is no balloon.
            (REPORTING, ""),
            (
                "ping -c 1 -W 10 10.88.0.1 > /dev/null && echo there",
                "there",
            ),
        ],
    )?;
    let listener = TcpListener::bind("10.88.0.1:0")?;
    let port = listener.local_addr()?.port();
    let served = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept()?;
        stream.write_all(b"heard\n")?;
        anyhow::Ok(peer)
    });
    let heard = console.run(&format!("nc 10.88.0.1 {port} < /dev/null"))?;
    ensure!(heard == "heard", "{heard}");
    let peer = served.join().ok().context("the server panicked")??;
    ensure!(
        peer.ip().to_string() == address,
        "{peer} connected, not {address}"
    );
    let text = page(&format!("{address}:80"))?;
    ensure!(text.ends_with("here\n"), "{text}");
    let ping = Command::new("ping")
        .args(["-c", "1", "-W", "10", address])
        .status()?;
    ensure!(ping.success(), "no echo of {address}");
    Ok(())
}
