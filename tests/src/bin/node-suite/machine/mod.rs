//! Machine pods: pods that boot disks of their own. Most boot the busybox machine, which is up within
//! seconds; what systemd, cloud-init and sshd are asked for is looked at in the Debian machine.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::{Console, Container, ContainerBuilder, Cri, Handler, Pod, PodBuilder, wait};

use crate::case::Case;

mod annotations;
mod bad_disks;
mod debian;
mod disks_and_cards;
mod ends;
mod examples;
mod first_boot;
mod guest_agent;
mod networks;
mod pets;
mod volumes;

/// The busybox machine's disk in its images, and its tree.
const BUSYBOX: &str = "docker.io/podvisor/busybox-machine:latest";
const BUSYBOX_RAW: &str = "docker.io/podvisor/busybox-machine:raw";
const BUSYBOX_TREE: &str = "docker.io/podvisor/busybox-tree:latest";
/// From a machine's start to its login prompt, on an emulated node: the busybox machine's and the
/// Debian machine's, whose first boot is the longest.
const BUSYBOX_BOOT: Duration = Duration::from_secs(120);
const DEBIAN_BOOT: Duration = Duration::from_mins(15);

pub fn cases() -> Vec<Case> {
    [
        first_boot::cases(),
        ends::cases(),
        pets::cases(),
        volumes::cases(),
        annotations::cases(),
        disks_and_cards::cases(),
        networks::cases(),
        bad_disks::cases(),
        guest_agent::cases(),
        debian::cases(),
        examples::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A pod for a machine of 256 MiB.
fn machine_pod<'c>(cri: &'c Cri, name: &str) -> PodBuilder<'c> {
    PodBuilder::new(cri, Handler::Podvisor, name)
        .annotation("podvisor.io/boot", "machine")
        .memory_mib(256)
}

/// A pod's machine, yet to be made. Images of disks name no program, and containerd wants one.
fn machine<'p, 'c>(pod: &'p Pod<'c>, image: &str) -> ContainerBuilder<'p, 'c> {
    let container = pod.container("machine").image(image);
    container.command(&["boot"]).stdin().terminal()
}

/// Someone who is logged in on the console of a started busybox machine.
fn logged_in(machine: &Container<'_, '_>) -> Result<Console> {
    let mut console = Console::attach(machine)?;
    console
        .log_in("root", None, BUSYBOX_BOOT)
        .with_context(|| format!("the transcript: {}", transcript(machine)))?;
    Ok(console)
}

/// Waits until the transcript has `text`, which is part of a line that has ended.
fn wait_for_log(machine: &Container<'_, '_>, text: &str, limit: Duration) -> Result<()> {
    wait::until(text, limit, || {
        Ok(machine.log()?.stdout.contains(text).then_some(()))
    })
    .with_context(|| format!("the transcript: {}", transcript(machine)))
}

/// What a machine's console has shown, for errors.
fn transcript(machine: &Container<'_, '_>) -> String {
    match machine.log() {
        Ok(log) => log.stdout,
        Err(error) => format!("{error:#}"),
    }
}

/// Feature 5 of each balloon (device 5 of virtio): it reports free pages.
const REPORTING: &str = "cd /sys/bus/virtio/devices; for d in *; do \
    [ $(cat $d/device) = 0x0005 ] && cut -c 6 $d/features; done; true";

/// Asks the machine things, each with its answer.
fn ensure_seen(console: &mut Console, seen: &[(&str, &str)]) -> Result<()> {
    for (question, answer) in seen {
        let said = console.run(question)?;
        ensure!(said == *answer, "{question}: {said:?}, not {answer:?}");
    }
    Ok(())
}

/// The page that the busybox machine serves.
fn page(address: &str) -> Result<String> {
    let mut page = TcpStream::connect(address)?;
    page.set_read_timeout(Some(Duration::from_secs(30)))?;
    page.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    page.read_to_string(&mut text)?;
    Ok(text)
}
