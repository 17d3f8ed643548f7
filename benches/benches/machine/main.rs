//! From the exec of the shim to the login prompt of the Debian machine, beside QEMU that boots the
//! same disk, in alternating pairs.
//!
//! Runs in a node that serves the machines' images: `machine [PAIRS]`. Both machines have one vCPU, as
//! much memory, a network card, the disk behind a copy-on-write layer that is new each time, and
//! cloud-init data of the same user.

mod ours;
mod qemu;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use podvisor_benches::{Median, print_figure};
use podvisor_tests::Cri;

/// The image with the machine's disk, and its layout in the node's registry.
const IMAGE: &str = "docker.io/podvisor/debian-machine:13";
const LAYOUT: &str = "debian-machine";
/// Memory of either machine.
const MEMORY_MIB: u32 = 512;
/// What both consoles are watched for: other lines may come between it and the name before it.
const PROMPT: &str = "login: ";
/// A machine that is not up by then will not be, on an emulated node either.
const BOOT_LIMIT: Duration = Duration::from_mins(15);
/// What the user of both machines says: enough for cloud-init to have its usual work.
const USER_DATA: &str = "#cloud-config\npassword: bench\nchpasswd: {expire: false}\n";

/// Pairs that are measured unless told otherwise: the fewest that bound a median.
const PAIRS: usize = 6;
/// No pair begins after this time.
const LIMIT: Duration = Duration::from_mins(60);

fn main() -> Result<()> {
    let pairs = std::env::args()
        .filter_map(|word| word.parse().ok())
        .next()
        .unwrap_or(PAIRS);
    let cri = Cri::connect()?;
    cri.ensure_image(IMAGE)?;
    let qemu = qemu::Machine::prepare()?;
    let ours = || ours::boot(&cri).map(|took| said("ours", took));
    let other = || qemu.boot().map(|took| said("QEMU", took));
    // Both once, unmeasured: files are then in memory for either.
    eprintln!("warm-up");
    ours()?;
    other()?;
    let begun = Instant::now();
    let (mut podvisor, mut qemus) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        if begun.elapsed() > LIMIT {
            break;
        }
        eprintln!("pair {} of {pairs}", pair + 1);
        // Whoever comes second finds warmer caches: take turns.
        if pair % 2 == 0 {
            podvisor.push(ours()?);
            qemus.push(other()?);
        } else {
            qemus.push(other()?);
            podvisor.push(ours()?);
        }
    }
    report(&podvisor, &qemus)
}

/// Tells how long a boot has taken; yields its seconds.
fn said(whose: &str, took: Duration) -> f64 {
    eprintln!("{whose}: {took:?}");
    took.as_secs_f64()
}

fn report(ours: &[f64], qemus: &[f64]) -> Result<()> {
    let median = |sample: &[f64]| Median::of(sample).context("too few pairs for an interval");
    let ratios: Vec<f64> = ours.iter().zip(qemus).map(|(a, b)| a / b).collect();
    print_figure("machine.login", median(ours)?.value, "s");
    print_figure("machine.login_qemu", median(qemus)?.value, "s");
    let ratio = median(&ratios)?;
    print_figure("machine.login_ratio", ratio.value, "ratio");
    print_figure("machine.login_ratio_low", ratio.low, "ratio");
    print_figure("machine.login_ratio_high", ratio.high, "ratio");
    print_figure("machine.pairs", ratios.len() as f64, "pairs");
    Ok(())
}
