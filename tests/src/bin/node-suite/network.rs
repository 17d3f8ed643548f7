//! The pod's network: the same addresses, routes and MTU as a runc pod has, and bytes that arrive.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::{Container, Cri, Handler, Pod, PodBuilder, wait};

use crate::case::{Case, gate, long};

pub fn cases() -> Vec<Case> {
    vec![
        gate("pods_and_node_reach_each_other", reach),
        gate("the_guest_has_the_networks_routes_and_mtu", same_as_runc),
        gate("a_download_arrives_whole_and_is_counted", |cri| {
            download(cri, 64)
        }),
        gate("frames_move_without_vhost_net_too", without_vhost),
        long("a_download_of_1_gib_arrives_whole", |cri| {
            download(cri, 1024)
        }),
    ]
}

/// A port of the node that leads into a pod.
const HOST_PORT: u16 = 8088;
const SERVE: &str = "mkdir -p /www; hostname > /www/name; httpd -f -p 80 -h /www";

/// The script's standard output on the node itself.
fn on_node(script: &str) -> Result<String> {
    let output = Command::new("sh").args(["-c", script]).output()?;
    ensure!(
        output.status.success(),
        "{script:?} on the node: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

fn url(address: &str) -> String {
    if address.contains("::") {
        format!("http://[{address}]/")
    } else {
        format!("http://{address}/")
    }
}

fn fetch(from: &Container<'_, '_>, address: &str) -> Result<String> {
    let script = format!("wget -q -T 20 -O - {}name", url(address));
    wait::until("server", Duration::from_secs(30), || {
        let output = from.exec(&["sh", "-c", &script])?;
        Ok((output.code == 0).then(|| output.stdout.trim_end().to_owned()))
    })
}

fn reach(cri: &Cri) -> Result<()> {
    let machine = PodBuilder::new(cri, Handler::Podvisor, "machine")
        .host_port(HOST_PORT, 80)
        .run()?;
    let plain = PodBuilder::new(cri, Handler::Runc, "plain").run()?;
    let in_machine = machine.container("server").script(SERVE).start()?;
    let in_plain = plain.container("server").script(SERVE).start()?;
    for (address, name) in [(&machine, machine.hostname()), (&plain, plain.hostname())]
        .map(|(pod, n)| (pod.addresses(), n))
    {
        let addresses = address?;
        ensure!(
            addresses.len() == 2,
            "one address of each family, not {addresses:?}"
        );
        for address in &addresses {
            for from in [&in_machine, &in_plain] {
                ensure!(fetch(from, address)? == name, "TCP to {address}");
                from.shell(&format!("ping -c 2 -W 10 {address}"))?;
            }
            let page = on_node(&format!("curl -sS --max-time 20 {}name", url(address)))?;
            ensure!(page == name, "TCP from the node to {address}: {page:?}");
            on_node(&format!("ping -c 2 -W 10 {address}"))?;
        }
    }
    // The first address of the bridge is the node's.
    let gateway = in_plain.shell("ip route | awk '/^default/ {print $3}'")?;
    let name = fetch(&in_plain, &format!("{gateway}:{HOST_PORT}"))?;
    ensure!(
        name == machine.hostname(),
        "the node's port leads to {name}"
    );
    let page = on_node(&format!(
        "curl -sS --max-time 20 http://127.0.0.1:{HOST_PORT}/name"
    ))?;
    ensure!(
        page == machine.hostname(),
        "its own port leads the node to {page}"
    );
    Ok(())
}

/// Routes and MTU as text, without what may differ between pods: their own addresses.
fn routes(pod: &Pod<'_>, container: &Container<'_, '_>) -> Result<String> {
    let mut text = container.shell(
        "cat /sys/class/net/eth0/mtu; ip route | sort; ip -6 route | grep -v ^fe80 | sort",
    )?;
    for address in pod.addresses()? {
        text = text.replace(&address, "ADDRESS");
    }
    Ok(text)
}

fn same_as_runc(cri: &Cri) -> Result<()> {
    let machine = PodBuilder::new(cri, Handler::Podvisor, "machine").run()?;
    let plain = PodBuilder::new(cri, Handler::Runc, "plain").run()?;
    let in_machine = machine.container("idle").start()?;
    let in_plain = plain.container("idle").start()?;
    let (ours, runcs) = (routes(&machine, &in_machine)?, routes(&plain, &in_plain)?);
    ensure!(
        ours == runcs,
        "routes differ.\nVM pod:\n{ours}\nrunc pod:\n{runcs}"
    );
    let addresses = in_machine.shell("ip -o addr show eth0")?;
    for address in machine.addresses()? {
        ensure!(
            addresses.contains(&format!("{address}/")),
            "{address} is not in\n{addresses}"
        );
    }
    ensure!(
        in_machine
            .shell("ip -o addr show lo")?
            .contains("127.0.0.1/8"),
        "lo is not up"
    );
    Ok(())
}

fn download(cri: &Cri, mib: u64) -> Result<()> {
    let plain = PodBuilder::new(cri, Handler::Runc, "source").run()?;
    let source = plain.container("server").script(SERVE).start()?;
    let machine = PodBuilder::new(cri, Handler::Podvisor, "sink").run()?;
    let sink = machine.container("idle").start()?;
    transfer(&source, &plain, &sink, mib)?;
    // The node counts what it sends to the guest, with the headers of its frames.
    let (received, sent) = machine.network_bytes()?;
    let expected = mib << 20;
    ensure!(
        (expected..expected + expected / 10).contains(&received),
        "{received} bytes received of {expected}"
    );
    ensure!(
        (1..expected / 10).contains(&sent),
        "{sent} bytes sent while {expected} came"
    );
    Ok(())
}

/// Lets `sink` fetch `mib` MiB from the pod `from` and compares what came.
fn transfer(
    source: &Container<'_, '_>,
    from: &Pod<'_>,
    sink: &Container<'_, '_>,
    mib: u64,
) -> Result<()> {
    source.shell(&format!("head -c {mib}m /dev/urandom > /www/file"))?;
    let sum = source.shell("md5sum < /www/file")?;
    let address = from.addresses()?.first().cloned().context("no address")?;
    let got = sink.shell(&format!("wget -q -O - {}file | md5sum", url(&address)))?;
    ensure!(got == sum, "{mib} MiB came as {got}, were {sum}");
    Ok(())
}

/// The kernel's device for cards, out of the way as long as this lives.
struct NoVhost;

impl NoVhost {
    const DEVICE: &str = "/dev/vhost-net";
    const AWAY: &str = "/dev/vhost-net.away";

    fn new() -> Result<Self> {
        fs::rename(Self::DEVICE, Self::AWAY)?;
        Ok(Self)
    }
}

impl Drop for NoVhost {
    fn drop(&mut self) {
        if let Err(error) = fs::rename(Self::AWAY, Self::DEVICE) {
            eprintln!("{} is not back: {error}", Self::DEVICE);
        }
    }
}

/// Whether the kernel has a worker for a card of this pod.
fn has_vhost(pod: &Pod<'_>) -> Result<bool> {
    let tasks = fs::read_dir(format!("/proc/{}/task", pod.shim_pid()?))?;
    let mut names = tasks
        .flatten()
        .flat_map(|task| fs::read_to_string(task.path().join("comm")));
    Ok(names.any(|name| name.starts_with("vhost-")))
}

fn without_vhost(cri: &Cri) -> Result<()> {
    let with = PodBuilder::new(cri, Handler::Podvisor, "with").run()?;
    ensure!(has_vhost(&with)?, "the node's vhost-net is not made use of");
    let away = NoVhost::new()?;
    let without = PodBuilder::new(cri, Handler::Podvisor, "without").run()?;
    drop(away);
    ensure!(
        !has_vhost(&without)?,
        "there is a worker without its device"
    );
    let one = with.container("one").script(SERVE).start()?;
    let other = without.container("other").script(SERVE).start()?;
    transfer(&one, &with, &other, 4)?;
    transfer(&other, &without, &one, 4)
}
