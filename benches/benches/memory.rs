//! What an idle pod takes of the host: its shim beyond the guest's own pages, the kernel on its
//! behalf, and the guest's kernel and agent inside.
//!
//! Runs in a node. The pod has one sleeping container with three volumes, and is 60 s old. How the
//! guest's part grows with its size, its vCPUs and its containers is measured with other pods.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use podvisor_benches::print_figure;
use podvisor_tests::{Cri, Handler, PodBuilder};

/// The age at which a pod counts as idle.
const AGE: Duration = Duration::from_secs(60);
/// The age at which a guest's own memory is measured.
const SETTLED: Duration = Duration::from_secs(5);
/// The guest's memory; no other mapping of a shim is as large as half of it.
const GUEST_MIB: i64 = 128;

/// A guest whose own memory is measured: MiB, vCPUs, containers.
#[derive(Clone, Copy)]
struct Shape {
    mib: u64,
    vcpus: u32,
    containers: u32,
}

/// The shape that the others are compared with; each of them differs in one respect.
const SMALL: Shape = Shape {
    mib: 128,
    vcpus: 1,
    containers: 1,
};
const LARGE: Shape = Shape { mib: 1152, ..SMALL };
const WIDE: Shape = Shape { vcpus: 5, ..SMALL };
const CROWDED: Shape = Shape {
    containers: 5,
    ..SMALL
};

fn main() -> Result<()> {
    let cri = Cri::connect()?;
    idle_pod(&cri)?;
    let small = guest_own(&cri, SMALL)?;
    print_figure("memory.guest_own", small, "MB");
    for (name, shape, steps) in [
        ("memory.guest_per_gib", LARGE, 1.0),
        ("memory.guest_per_vcpu", WIDE, 4.0),
        ("memory.guest_per_container", CROWDED, 4.0),
    ] {
        print_figure(name, (guest_own(&cri, shape)? - small) / steps, "MB");
    }
    Ok(())
}

/// What a guest takes of its memory, in megabytes: kernel image, page structures, agent and the
/// processes that sleep in its containers; all that does not count as available.
fn guest_own(cri: &Cri, shape: Shape) -> Result<f64> {
    let Shape {
        mib,
        vcpus,
        containers,
    } = shape;
    eprintln!("a guest of {mib} MiB with {vcpus} vCPUs and {containers} containers");
    let pod = PodBuilder::new(cri, Handler::Podvisor, "memory")
        .memory_mib(i64::try_from(mib)?)
        .annotation("podvisor.io/memory", &format!("{mib}Mi"))
        .annotation("podvisor.io/cpus", &vcpus.to_string())
        .run()?;
    let mut idle = Vec::new();
    for number in 0..containers {
        idle.push(pod.container(&format!("idle{number}")).start()?);
    }
    std::thread::sleep(SETTLED);
    let any = idle.first().context("no container")?;
    let available = any.shell("awk '/MemAvailable/ {print $2}' /proc/meminfo")?;
    Ok((mib << 20) as f64 / 1e6 - kib_to_mb(available.parse()?))
}

fn idle_pod(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "memory")
        .memory_mib(GUEST_MIB)
        .run()?;
    let mut container = pod.container("idle");
    for name in ["one", "two", "three"] {
        container = container.mount(&pod.volume(name)?, &format!("/{name}"));
    }
    let container = container.start()?;
    std::thread::sleep(AGE);

    let shim = pod.shim_pid()?;
    let mappings = fs::read_to_string(format!("/proc/{shim}/smaps"))?;
    let (mut beyond, mut anonymous, mut guest) = (0_u64, 0_u64, 0_u64);
    for mapping in Mapping::parse(&mappings) {
        if mapping.size_kib >= u64::try_from(GUEST_MIB)? << 9 {
            guest += mapping.pss_kib;
        } else {
            beyond += mapping.pss_kib;
            anonymous += mapping.anonymous_kib;
        }
    }
    let free = container
        .shell("awk '/MemAvailable/ {print $2}' /proc/meminfo")?
        .parse::<f64>()?;
    let total = container
        .shell("awk '/MemTotal/ {print $2}' /proc/meminfo")?
        .parse::<f64>()?;
    let threads = fs::read_dir(format!("/proc/{shim}/task"))?.count();

    print_figure("memory.host_overhead", kib_to_mb(beyond), "MB");
    print_figure("memory.host_anonymous", kib_to_mb(anonymous), "MB");
    print_figure("memory.host_kernel", kernel_bytes(shim)? / 1e6, "MB");
    print_figure("memory.host_threads", threads as f64, "threads");
    print_figure("memory.guest_touched", kib_to_mb(guest), "MB");
    print_figure("memory.guest_total", total * 1.024e-3, "MB");
    print_figure("memory.guest", (total - free) * 1.024e-3, "MB");
    Ok(())
}

fn kib_to_mb(kib: u64) -> f64 {
    kib as f64 * 1.024e-3
}

/// Kernel memory charged to the shim's own cgroup: page tables, KVM's and the shim's, and slabs.
fn kernel_bytes(shim: i32) -> Result<f64> {
    let cgroup = fs::read_to_string(format!("/proc/{shim}/cgroup"))?;
    let path = cgroup
        .trim()
        .strip_prefix("0::/")
        .context("the shim is in no v2 cgroup")?;
    let stat = fs::read_to_string(Path::new("/sys/fs/cgroup").join(path).join("memory.stat"))?;
    let value = |name: &str| {
        let line = stat
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
        line.with_context(|| format!("memory.stat has no {name:?}"))
    };
    value("kernel ")
}

/// One mapping of a process, as smaps tells.
struct Mapping {
    size_kib: u64,
    pss_kib: u64,
    anonymous_kib: u64,
}

impl Mapping {
    fn parse(smaps: &str) -> Vec<Self> {
        let mut mappings: Vec<Self> = Vec::new();
        for line in smaps.lines() {
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let kib = value
                .trim()
                .strip_suffix(" kB")
                .and_then(|n| n.trim().parse().ok());
            let Some(kib) = kib else { continue };
            if name == "Size" {
                mappings.push(Self {
                    size_kib: kib,
                    pss_kib: 0,
                    anonymous_kib: 0,
                });
            }
            let Some(mapping) = mappings.last_mut() else {
                continue;
            };
            match name {
                "Pss" => mapping.pss_kib = kib,
                "Anonymous" => mapping.anonymous_kib = kib,
                _ => {}
            }
        }
        mappings
    }
}
