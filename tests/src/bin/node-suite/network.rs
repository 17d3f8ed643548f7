//! The pod's network: the same addresses, routes and MTU as a runc pod has, and bytes that arrive.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::{Container, Cri, Handler, Pod, PodBuilder, wait};

use crate::case::{Case, gate, long};

pub fn cases() -> Vec<Case> {
    vec![
        gate("pods_and_node_reach_each_other", reach),
        gate("the_guest_has_the_networks_routes_and_mtu", same_as_runc),
        gate("a_download_arrives_whole", |cri| download(cri, 64)),
        long("a_download_of_1_gib_arrives_whole", |cri| {
            download(cri, 1024)
        }),
    ]
}

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
    if address.contains(':') {
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
    let machine = PodBuilder::new(cri, Handler::Podvisor, "machine").run()?;
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
    source.shell(&format!("head -c {mib}m /dev/urandom > /www/file"))?;
    let sum = source.shell("md5sum < /www/file")?;
    let machine = PodBuilder::new(cri, Handler::Podvisor, "sink").run()?;
    let sink = machine.container("idle").start()?;
    let address = plain.addresses()?.first().cloned().context("no address")?;
    let got = sink.shell(&format!("wget -q -O - {}file | md5sum", url(&address)))?;
    ensure!(got == sum, "{mib} MiB came as {got}, were {sum}");
    Ok(())
}
