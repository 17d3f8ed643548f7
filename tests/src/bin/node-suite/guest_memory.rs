//! What a guest's memory lies on, and how it goes back to a host that is short of it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::{Container, Cri, Handler, Pod, PodBuilder, wait};

use crate::case::{Case, long};
use crate::resources::size_inside;

pub fn cases() -> Vec<Case> {
    vec![
        long("a_pods_memory_can_be_one_page_of_1_gib", large_page),
        long("a_balloon_follows_its_pods_shortage", balloon),
    ]
}

/// The node's pool of pages of 1 GiB.
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-1048576kB";

/// Pages in the node's pool: all of them, or those that nobody has.
fn pages(file: &str) -> Result<u64> {
    let path = Path::new(POOL).join(file);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(text.trim().parse()?)
}

fn set_pages(number: u64) -> Result<()> {
    let path = Path::new(POOL).join("nr_hugepages");
    fs::write(&path, number.to_string())?;
    let there = pages("nr_hugepages")?;
    ensure!(there == number, "the pool has {there} pages, not {number}");
    Ok(())
}

/// A pod whose memory limit is less than the page, which does not count there.
fn of_large_pages<'c>(cri: &'c Cri, name: &str) -> PodBuilder<'c> {
    PodBuilder::new(cri, Handler::Podvisor, name)
        .annotation("podvisor.io/hugepages", "1Gi")
        .annotation("podvisor.io/memory", "1Gi")
}

fn large_page(cri: &Cri) -> Result<()> {
    let too_few = of_large_pages(cri, "none").run();
    let error = format!("{:#}", too_few.err().context("run on no pages")?);
    for part in ["huge pages", "1024 MiB"] {
        ensure!(
            error.contains(part),
            "{part:?} is not in the error: {error}"
        );
    }
    set_pages(1)?;
    let seen = on_large_page(cri);
    set_pages(0)?;
    seen
}

fn on_large_page(cri: &Cri) -> Result<()> {
    let pod = of_large_pages(cri, "large").run()?;
    let container = pod.container("idle").start()?;
    let free = pages("free_hugepages")?;
    ensure!(free == 0, "the page is not taken");
    let is_large = has_pages_of(&pod, 1 << 20)?;
    ensure!(is_large, "no memory is in a page of 1 GiB");
    let (_, mib) = size_inside(&container)?;
    ensure!((900..=1024).contains(&mib), "{mib} MiB of 1024");
    Ok(())
}

/// Whether some memory of the pod's shim lies in pages of `kib` KiB.
pub fn has_pages_of(pod: &Pod<'_>, kib: u32) -> Result<bool> {
    let maps = fs::read_to_string(format!("/proc/{}/smaps", pod.shim_pid()?))?;
    let end = format!(" {kib} kB");
    let mut lines = maps.lines();
    Ok(lines.any(|line| line.starts_with("KernelPageSize:") && line.ends_with(&end)))
}

/// Frees and takes 48 MiB as long as `/busy` is there: what is freed goes back to the host.
const BUSY: &str = "while true; do \
    if [ -e /busy ]; then dd if=/dev/zero of=/dev/shm/taken bs=1M count=48; rm /dev/shm/taken; fi; sleep 1; done";

/// Pages that the balloon has taken of the guest, and that it has given back.
fn moved(container: &Container<'_, '_>) -> Result<(u64, u64)> {
    let seen = container
        .shell("echo $(sed -n 's/^balloon_inflate //p; s/^balloon_deflate //p' /proc/vmstat)")?;
    let (taken, given) = seen.split_once(' ').context("two numbers")?;
    Ok((taken.parse()?, given.parse()?))
}

fn balloon(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "balloon")
        .annotation("podvisor.io/balloon", "auto")
        .annotation("podvisor.io/memory", "256Mi")
        .run()?;
    let container = pod.container("busy").script(BUSY).start()?;
    ensure!(moved(&container)? == (0, 0), "moved without a shortage");
    let group = pod.server_cgroup()?;
    let used = fs::read_to_string(group.join("memory.current"))?;
    let high = used.trim().parse::<u64>()? + (8 << 20);
    fs::write(group.join("memory.high"), high.to_string())?;
    container.shell("touch /busy")?;
    wait::until("memory is taken", Duration::from_secs(300), || {
        Ok((moved(&container)?.0 > 0).then_some(()))
    })?;
    fs::write(group.join("memory.high"), "max")?;
    container.shell("rm /busy")?;
    let mut last = (0, 0);
    wait::until("all is given back", Duration::from_secs(300), || {
        last = moved(&container)?;
        Ok((last.0 == last.1).then_some(()))
    })
    .with_context(|| format!("taken and given, in pages: {last:?}"))
}
