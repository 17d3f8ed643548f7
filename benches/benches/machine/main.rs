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
/// A machine that is not up by then will not be, on an emulated node either.
const BOOT_LIMIT: Duration = Duration::from_mins(6);
/// How many pairs may have a boot that fails: they are measured again, and told.
const FAILURES: u32 = 3;
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
    let ours = || told("ours", ours::boot(&cri));
    let other = || told("QEMU", qemu.boot());
    // Both once, unmeasured: files are then in memory for either.
    eprintln!("warm-up");
    ours()?;
    other()?;
    let begun = Instant::now();
    let (mut measured, mut failures) = (Vec::new(), 0);
    while measured.len() < pairs && begun.elapsed() < LIMIT {
        eprintln!("pair {} of {pairs}", measured.len() + 1);
        // Whoever comes second finds warmer caches: take turns.
        let (our, its) = if measured.len() % 2 == 0 {
            let our = ours();
            (our, other())
        } else {
            let its = other();
            (ours(), its)
        };
        match our.and_then(|our| Ok((our, its?))) {
            Ok(pair) => measured.push(pair),
            Err(error) if failures == FAILURES => return Err(error),
            Err(_) => failures += 1,
        }
    }
    report(&measured)?;
    print_figure("machine.failures", failures.into(), "pairs");
    Ok(())
}

/// Tells how a boot went; yields its seconds.
fn told(whose: &str, boot: Result<Duration>) -> Result<f64> {
    match &boot {
        Ok(took) => eprintln!("{whose}: {took:?}"),
        Err(error) => eprintln!("{whose}: {error:#}"),
    }
    Ok(boot?.as_secs_f64())
}

fn report(pairs: &[(f64, f64)]) -> Result<()> {
    let median = |of: fn(&(f64, f64)) -> f64| {
        let sample: Vec<f64> = pairs.iter().map(of).collect();
        Median::of(&sample).context("too few pairs for an interval")
    };
    print_figure("machine.login", median(|pair| pair.0)?.value, "s");
    print_figure("machine.login_qemu", median(|pair| pair.1)?.value, "s");
    let ratio = median(|pair| pair.0 / pair.1)?;
    print_figure("machine.login_ratio", ratio.value, "ratio");
    print_figure("machine.login_ratio_low", ratio.low, "ratio");
    print_figure("machine.login_ratio_high", ratio.high, "ratio");
    print_figure("machine.pairs", pairs.len() as f64, "pairs");
    Ok(())
}
