//! Network cards of a machine that is stopped, continued and moved, whoever serves them.

use std::process::Command;
use std::sync::Arc;

use anyhow::{Result, ensure};
use podvisor_devices::net::{MacAddress, Net, NetConfig, QueuePair, Tap, VhostNet};
use podvisor_vmm::DeviceSlot;
use podvisor_vmm::confine::spawn_io_loop;

use super::case;
use super::guest::Guest;
use crate::case::Case;

pub fn cases() -> Vec<Case> {
    vec![case(
        "vm_card_goes_on_between_the_kernel_and_the_vmm",
        save_and_restore,
    )]
}

const TAP: &str = "pvtap-vm";
const SCRIPT: &str = "ip link set eth0 up; ip address add 10.66.0.2/24 dev eth0
i=0; while true; do ping -c 1 -W 5 10.66.0.1 >/dev/null && i=$((i+1)) && echo tick $i; done";

fn card(tap: &Arc<Tap>, with_vhost: bool) -> Result<Vec<DeviceSlot>> {
    let config = NetConfig {
        mac: MacAddress::try_from([2, 0, 0, 0, 0, 2])?,
        mtu: None,
    };
    let pair = QueuePair {
        backend: tap.clone(),
        vhost: with_vhost.then(VhostNet::open).transpose()?,
    };
    let card = Net::new(config, vec![pair], spawn_io_loop()?);
    Ok(vec![DeviceSlot {
        name: "net".to_owned(),
        address: None,
        device: Box::new(card),
    }])
}

/// One tap serves a row of machines, each of which goes on where the one before stood.
fn save_and_restore() -> Result<()> {
    let tap = Arc::new(Tap::open(TAP)?);
    for arguments in [
        vec!["address", "add", "10.66.0.1/24", "dev", TAP],
        vec!["link", "set", TAP, "up"],
    ] {
        let set = Command::new("ip").args(&arguments).status()?;
        ensure!(set.success(), "ip {arguments:?}");
    }
    let make = |with_vhost| {
        Guest::new(SCRIPT)?
            .devices(card(&tap, with_vhost)?)
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
