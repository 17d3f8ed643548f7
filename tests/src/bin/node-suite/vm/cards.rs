//! Network cards of a machine that is stopped, continued and moved, whoever serves them.

use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use podvisor_devices::net::{MacAddress, Net, NetConfig, QueuePair, Tap, VhostNet};
use podvisor_tests::wait;
use podvisor_vmm::DeviceSlot;
use podvisor_vmm::confine::spawn_io_loop;

use super::case;
use super::guest::{Guest, PATIENCE};
use crate::case::Case;

pub fn cases() -> Vec<Case> {
    vec![
        case(
            "vm_card_goes_on_between_the_kernel_and_the_vmm",
            save_and_restore,
        ),
        case("vm_card_with_queues_starts_over", start_over),
    ]
}

const TAP: &str = "pvtap-vm";
const SCRIPT: &str = "ip link set eth0 up; ip address add 10.66.0.2/24 dev eth0
i=0; while true; do ping -c 1 -W 5 10.66.0.1 >/dev/null && i=$((i+1)) && echo tick $i; done";

fn card(taps: &[Arc<Tap>], with_vhost: bool) -> Result<Vec<DeviceSlot>> {
    let config = NetConfig {
        mac: MacAddress::try_from([2, 0, 0, 0, 0, 2])?,
        mtu: None,
    };
    let pair = |tap: &Arc<Tap>| -> Result<QueuePair> {
        Ok(QueuePair {
            backend: tap.clone(),
            vhost: with_vhost.then(VhostNet::open).transpose()?,
        })
    };
    let pairs = taps.iter().map(pair).collect::<Result<_>>()?;
    let card = Net::new(config, pairs, spawn_io_loop()?);
    Ok(vec![DeviceSlot {
        name: "net".to_owned(),
        address: None,
        device: Box::new(card),
    }])
}

/// Gives a tap its address, and lets it run.
fn set_up(tap: &str) -> Result<()> {
    for arguments in [
        vec!["address", "add", "10.66.0.1/24", "dev", tap],
        vec!["link", "set", tap, "up"],
    ] {
        let set = Command::new("ip").args(&arguments).status()?;
        ensure!(set.success(), "ip {arguments:?}");
    }
    Ok(())
}

/// One tap serves a row of machines, each of which goes on where the one before stood.
fn save_and_restore() -> Result<()> {
    let taps = [Arc::new(Tap::open(TAP)?)];
    set_up(TAP)?;
    let make = |with_vhost| {
        Guest::new(SCRIPT)?
            .devices(card(&taps, with_vhost)?)
            .args("loglevel=5")
    };
    let mut guest = make(true)?.start()?;
    for (round, with_vhost) in [(1, true), (2, false), (3, true)] {
        guest.line(&format!("tick {}", round * 5))?;
        guest.vm.pause()?;
        let state = guest.vm.save()?;
        guest = make(with_vhost)?.restore(guest, &state)?;
        guest.vm.resume()?;
    }
    guest.line("tick 20").map(drop)
}

/// A reset takes the queues back that the driver has begun to use, whoever serves them.
fn start_over() -> Result<()> {
    for with_vhost in [false, true] {
        let taps = Tap::open_queues(TAP, 2)?;
        let taps: Vec<_> = taps.into_iter().map(Arc::new).collect();
        set_up(TAP)?;
        let guest = Guest::new(SCRIPT)?.size(2, 128)?.restarting();
        let guest = guest.devices(card(&taps, with_vhost)?);
        let guest = guest.args("loglevel=5")?.start()?;
        guest.line("tick 2")?;
        let seen = guest.console().len();
        guest.vm.restart()?;
        wait::until("the network after a reset", PATIENCE, || {
            let console = guest.console();
            let since = console.get(seen..).unwrap_or_default();
            Ok(since.contains("tick 2").then_some(()))
        })
        .with_context(|| guest.console())?;
    }
    Ok(())
}
