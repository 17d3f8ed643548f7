//! What annotations say of a machine, looked at from inside of it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use podvisor_proto::cri::v1::LinuxContainerResources;
use podvisor_tests::{Console, Cri, LoopDevice, Pod, PodNetworks, wait};

use super::{BUSYBOX, BUSYBOX_BOOT, logged_in, machine, machine_pod, transcript};
use crate::case::{Case, gate, long};

const DATA_LEN: u64 = 16 << 20;
/// Where the busybox machine's partition begins.
const PARTITION: u64 = 1 << 20;

pub fn cases() -> Vec<Case> {
    vec![
        long("a_machines_hardware_is_as_annotated", hardware),
        long("a_machine_grows_with_its_limits_on_its_node", growth),
        long(
            "a_machines_disks_and_cards_are_as_annotated",
            disks_and_cards,
        ),
        long("a_machine_can_have_an_address_of_its_own", private_address),
        gate("a_machines_console_can_be_virtio", virtio_console),
        gate("a_machine_that_hangs_is_reset_by_its_watchdog", watchdog),
        long("disks_are_booted_in_the_annotated_order", boot_order),
    ]
}

/// Asks the machine things, each with its answer.
fn ensure_seen(console: &mut Console, seen: &[(&str, &str)]) -> Result<()> {
    for (question, answer) in seen {
        let said = console.run(question)?;
        ensure!(said == *answer, "{question}: {said:?}, not {answer:?}");
    }
    Ok(())
}

/// The node's pool of huge pages, and as many as the machine is large, with some to spare.
const POOL: &str = "/proc/sys/vm/nr_hugepages";
const PAGES: &str = "170";
const SMBIOS: &str = "{system: {manufacturer: Example, product: Pet, version: '7', sku: A1, family: Pets}, \
    board: {product: Board}, chassis: {asset: '0042'}, oem-strings: [role=db]}";

fn hardware(cri: &Cri) -> Result<()> {
    fs::write(POOL, PAGES)?;
    let seen = hardware_on_huge_pages(cri);
    fs::write(POOL, "0")?;
    seen
}

fn hardware_on_huge_pages(cri: &Cri) -> Result<()> {
    let pages = fs::read_to_string(POOL)?;
    ensure!(pages.trim() == PAGES, "the node has {pages} huge pages");
    let pod = machine_pod(cri, "hardware")
        .annotation("podvisor.io/cpus", "2")
        .annotation("podvisor.io/max-cpus", "2")
        .annotation("podvisor.io/cpu-topology", "1:1:2")
        .annotation("podvisor.io/cpu-model", "x86-64-v2")
        .annotation("podvisor.io/memory", "320Mi")
        .annotation("podvisor.io/kernel-args", "mitigations=off")
        .annotation("podvisor.io/smbios", SMBIOS)
        .annotation("podvisor.io/rng", "1Ki")
        .annotation("podvisor.io/hugepages", "2Mi")
        .annotation("podvisor.io/balloon", "reporting")
        .run()?;
    let machine = machine(&pod, BUSYBOX).start()?;
    let mut console = logged_in(&machine)?;
    ensure_seen(
        &mut console,
        &[
            ("nproc", "2"),
            (
                "cat /sys/devices/system/cpu/cpu1/topology/thread_siblings_list",
                "0-1",
            ),
            (
                "grep -c -w sse4_2 /proc/cpuinfo; grep -c -w avx /proc/cpuinfo; true",
                "2\n0",
            ),
            (
                "grep -o -w mitigations=off /proc/cmdline",
                "mitigations=off",
            ),
            (
                "cd /sys/class/dmi/id; cat sys_vendor product_name product_version product_sku \
                 product_family board_name chassis_asset_tag",
                "Example\nPet\n7\nA1\nPets\nBoard\n0042",
            ),
            (
                "strings /sys/firmware/dmi/tables/DMI | grep role=",
                "role=db",
            ),
            (REPORTING, "1"),
        ],
    )?;
    sizes(&pod, &mut console)
}

/// Feature 5 of each balloon (device 5 of virtio): it reports free pages.
const REPORTING: &str = "cd /sys/bus/virtio/devices; for d in *; do \
    [ $(cat $d/device) = 0x0005 ] && cut -c 6 $d/features; done; true";

/// How much memory the machine has, and in what; who it is; how fast its entropy comes.
fn sizes(pod: &Pod<'_>, console: &mut Console) -> Result<()> {
    let maps = fs::read_to_string(format!("/proc/{}/smaps", pod.shim_pid()?))?;
    let mut lines = maps.lines();
    let is_huge = lines.any(|l| l.starts_with("KernelPageSize:") && l.ends_with(" 2048 kB"));
    ensure!(is_huge, "no memory is in huge pages");
    let kib = console.run("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")?;
    let mib = kib.parse::<u64>()? >> 10;
    ensure!((256..=320).contains(&mib), "{mib} MiB of 320");
    let name = pod.config().metadata.clone().unwrap_or_default().name;
    let serial = console.run("cat /sys/class/dmi/id/product_serial")?;
    ensure!(
        serial == format!("default/{name}"),
        "serial number {serial}"
    );
    // 1 KiB a second, and as much at once, of which the kernel takes its part as well.
    let took = console.run(
        "a=$(cut -d . -f 1 /proc/uptime); head -c 3072 /dev/hwrng > /dev/null; \
         b=$(cut -d . -f 1 /proc/uptime); echo $((b - a))",
    )?;
    ensure!(took.parse::<u32>()? >= 1, "3 KiB of entropy in {took} s");
    Ok(())
}

/// Nobody in this machine switches processors on but who sits at its console; memory comes by itself.
fn growth(cri: &Cri) -> Result<()> {
    let pod = machine_pod(cri, "growing")
        .annotation("podvisor.io/max-cpus", "2")
        .annotation("podvisor.io/max-memory", "768Mi")
        .annotation("podvisor.io/cpu-pinning", "none")
        .annotation("podvisor.io/numa", "auto")
        .run()?;
    let container = machine(&pod, BUSYBOX);
    let container = container
        .with_resources(|all| all.cpuset_cpus = "0".into())
        .start()?;
    let mut console = logged_in(&container)?;
    ensure_seen(
        &mut console,
        &[
            ("nproc", "1"),
            ("cat /sys/devices/system/cpu/possible", "0-1"),
            ("cat /sys/devices/system/node/online", "0"),
            ("ls /sys/firmware/acpi/tables | grep SRAT", "SRAT"),
        ],
    )?;
    let maps = fs::read_to_string(format!("/proc/{}/numa_maps", pod.shim_pid()?))?;
    ensure!(maps.contains(" bind:0 "), "no memory is bound:\n{maps}");
    let mut memory = || -> Result<u64> {
        let kib = console.run("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")?;
        Ok(kib.parse::<u64>()? >> 10)
    };
    let begun = memory()?;
    let limits = |memory_mib: i64, millicpus: i64| LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: millicpus * 100,
        memory_limit_in_bytes: memory_mib << 20,
        cpuset_cpus: "0".into(),
        ..LinuxContainerResources::default()
    };
    container.update(limits(480, 1500))?;
    wait::until("more memory", Duration::from_secs(60), || {
        Ok((memory()? >= begun + 200).then_some(()))
    })?;
    console.run("echo 1 > /sys/devices/system/cpu/cpu1/online")?;
    ensure_seen(&mut console, &[("nproc", "2")])?;
    let refused = container.update(limits(1024, 1500)).err();
    let error = format!("{:#}", refused.context("taken beyond the most")?);
    for part in ["1024 MiB", "podvisor.io/max-memory", "768 MiB"] {
        ensure!(
            error.contains(part),
            "{part:?} is not in the error: {error}"
        );
    }
    container.update(limits(256, 1000))?;
    wait::until("one processor again", Duration::from_secs(60), || {
        Ok((console.run("nproc")? == "1").then_some(()))
    })
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
         - {path: /dev/data, ro: true, serial: DATA01, pci: '00:0a.0', queues: 1, cache: none, bps: 2Mi}\n\
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
    cards(&pod, &mut console)?;
    rates(&mut console)?;
    let write =
        console.run("dd if=/dev/zero of=/dev/$(basename $(readlink -f /run/DATA01)) count=1");
    ensure!(write.is_err(), "wrote to a read-only disk");
    Ok(())
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

/// The page that the busybox machine serves.
pub fn page(address: &str) -> Result<String> {
    let mut page = TcpStream::connect(address)?;
    page.set_read_timeout(Some(Duration::from_secs(30)))?;
    page.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    page.read_to_string(&mut text)?;
    Ok(text)
}

/// The machine's own menu knows of its serial port alone, and is quiet.
fn virtio_console(cri: &Cri) -> Result<()> {
    let pod = machine_pod(cri, "console")
        .annotation("podvisor.io/console", "virtio")
        .annotation("podvisor.io/kernel-args", "debug");
    let pod = pod.run()?;
    let machine = machine(&pod, BUSYBOX).start()?;
    let mut console = logged_in(&machine)?;
    let terminal = console.run("sed 's/.* //' /sys/class/tty/console/active")?;
    ensure!(terminal == "hvc0", "the console is {terminal}");
    let log = transcript(&machine);
    let mut lines = log.lines();
    let is_heard =
        lines.any(|line| line.contains("Linux version ") && line.contains("cloud-amd64"));
    ensure!(is_heard, "its kernel is not heard: {log}");
    // Device 26 of virtio, a file system: there is nothing to share.
    let shared = console.run("cat /sys/bus/virtio/devices/*/device | grep -c 0x001a; true")?;
    ensure!(shared == "0", "{shared} file systems for no volume");
    let lines = console.run("seq 3000 | tail -n 1")?;
    ensure!(lines == "3000", "{lines}");
    Ok(())
}

fn watchdog(cri: &Cri) -> Result<()> {
    let pod = machine_pod(cri, "watchdog").annotation("podvisor.io/watchdog", "10");
    let pod = pod.run()?;
    let machine = machine(&pod, BUSYBOX).start()?;
    let mut console = logged_in(&machine)?;
    let found = console.run("cd /sys/class/watchdog/watchdog0; cat identity state")?;
    ensure!(found.contains("inactive"), "{found}");
    // It is armed, and then nobody feeds it.
    console.send("(sleep 1000 > /dev/watchdog) &\n")?;
    console.expect(": boot 2\n", BUSYBOX_BOOT + Duration::from_secs(30))?;
    let running = machine.status()?;
    ensure!(running.finished_at == 0, "it ended: {running:?}");
    Ok(())
}

/// Two disks that boot, the second one first.
fn boot_order(cri: &Cri) -> Result<()> {
    let second = LoopDevice::new(96 << 20)?;
    let pod = machine_pod(cri, "filled").run()?;
    let filled = machine(&pod, BUSYBOX)
        .device(second.path(), "/", "mrw")
        .start()?;
    logged_in(&filled).with_context(|| transcript(&filled))?;
    filled.stop(Duration::from_secs(60))?;
    drop(pod);
    mark(&second)?;
    let pod = machine_pod(cri, "order")
        .annotation("podvisor.io/boot-order", "[/dev/second, /]")
        .annotation("podvisor.io/cpu-pinning", "auto")
        .annotation("podvisor.io/balloon", "auto");
    let pod = pod.run()?;
    let machine = machine(&pod, BUSYBOX).device(second.path(), "/dev/second", "mrw");
    let machine = machine.millicpus(1000);
    let machine = machine.with_resources(|all| all.cpuset_cpus = "0".into());
    let machine = machine.start()?;
    let mut console = logged_in(&machine)?;
    let arguments = console.run("cat /proc/cmdline")?;
    ensure!(arguments.contains("from=second"), "{arguments}");
    ensure_seen(&mut console, &[(REPORTING, "1")])?;
    let allowed = cpus_of_vcpu(&pod)?;
    ensure!(allowed == "0", "vcpu0 runs on {allowed}");
    Ok(())
}

/// The host's CPUs that the machine's first processor may run on.
fn cpus_of_vcpu(pod: &Pod<'_>) -> Result<String> {
    for task in fs::read_dir(format!("/proc/{}/task", pod.shim_pid()?))? {
        let path = task?.path();
        if fs::read_to_string(path.join("comm"))?.trim() == "vcpu0" {
            let status = fs::read_to_string(path.join("status"))?;
            let mut lines = status.lines();
            let list = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            return Ok(list.context("no list of CPUs")?.trim().to_owned());
        }
    }
    bail!("there is no vcpu0")
}

/// Changes what the disk's menu says for its kernel.
fn mark(disk: &LoopDevice) -> Result<()> {
    const MENU: &str = "/boot/extlinux/extlinux.conf";
    let debugfs = |command: &str| {
        let output = Command::new("debugfs")
            .args(["-w", "-R", command])
            .arg(format!("{}?offset={PARTITION}", disk.path().display()))
            .output()?;
        ensure!(output.status.success(), "debugfs: {output:?}");
        anyhow::Ok(String::from_utf8(output.stdout)?)
    };
    let menu = debugfs(&format!("cat {MENU}"))?;
    ensure!(menu.contains("APPEND "), "{menu}");
    let new = tempfile::NamedTempFile::new_in("/var/tmp")?;
    fs::write(new.path(), menu.replace("APPEND ", "APPEND from=second "))?;
    debugfs(&format!("rm {MENU}"))?;
    debugfs(&format!("write {} {MENU}", new.path().display()))?;
    Ok(())
}
