//! How long a machine takes from the exec of its VMM to the first instruction of its init, and
//! how often its processor leaves the guest meanwhile.
//!
//! `boot [--kernel FILE --initrd FILE]`: the kernel of the release and, where given, a reference
//! kernel and initial image whose init writes the byte that `boot-driver` waits for. Every boot
//! has 1 vCPU and 128 MiB and no devices but the serial port.

mod driver;
mod idle;
mod init;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use criterion::{Criterion, SamplingMode};
use podvisor_benches::{Median, print_figure};
use podvisor_tests::node;

use driver::{Boot, Driver};
use idle::ProcessorTime;

/// Boots of each kind; enough for a median with 95 % bounds.
const BOOTS: usize = 15;
/// The arguments on which the peers were measured: no PCI, no serial console.
const REFERENCE_ARGS: &str = "quiet console=none 8250.nr_uarts=0 panic=-1 pci=off UM=r";
/// Ours, as pods with one processor get them: Linux then leaves its LOCK prefixes alone, which
/// take 4 ms to patch away.
const RELEASE_ARGS: &str = "quiet console=ttyS0 panic=-1 noreplace-smp";

/// What the command line asks for.
#[derive(Default)]
struct Options {
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
}

fn main() -> Result<()> {
    let options = options(std::env::args().skip(1))?;
    let folder = tempfile::tempdir()?;
    let driver = Driver::copy_to(Path::new(env!("CARGO_BIN_EXE_boot-driver")), folder.path())?;
    let initrd = folder.path().join("initrd");
    fs::write(&initrd, init::image())?;
    let release = match std::env::var_os("PODVISOR_RELEASE") {
        Some(release) => PathBuf::from(release),
        None => node::release()?,
    };
    let kernel = copy(&release.join("vmlinux"), folder.path(), "vmlinux")?;
    let before = ProcessorTime::now()?;
    let shipped = measure(
        "exec_to_init",
        &driver.boot_of(&kernel, &initrd, RELEASE_ARGS),
    )?;
    let reference = match (&options.kernel, &options.initrd) {
        (Some(kernel), Some(initrd)) => {
            let kernel = copy(kernel, folder.path(), "ref-vmlinux")?;
            let initrd = copy(initrd, folder.path(), "ref-initrd")?;
            let boot = driver.boot_of(&kernel, &initrd, REFERENCE_ARGS);
            Some(measure("ref_exec_to_init", &boot)?)
        }
        (None, None) => None,
        _ => bail!("--kernel and --initrd go together"),
    };
    print_figures(&shipped, reference.as_deref())?;
    print_figure(
        "boot.idle_share",
        ProcessorTime::now()?.idle_share_since(&before),
        "%",
    );
    Ok(())
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options::default();
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .with_context(|| format!("{word} takes a value"))
        };
        match word.as_str() {
            // Cargo's word for "do measure".
            "--bench" => {}
            "--kernel" => options.kernel = Some(value()?.into()),
            "--initrd" => options.initrd = Some(value()?.into()),
            _ => bail!("unknown option {word}"),
        }
    }
    Ok(options)
}

/// Copies a file to where reading it costs the same each time.
fn copy(from: &Path, folder: &Path, name: &str) -> Result<PathBuf> {
    let to = folder.join(name);
    fs::copy(from, &to).with_context(|| format!("cannot read {}", from.display()))?;
    Ok(to)
}

/// Boots [`BOOTS`] times under criterion's eyes.
fn measure(name: &str, command: &driver::Command<'_>) -> Result<Vec<Boot>> {
    let mut boots = Vec::new();
    let mut failure = None;
    let mut criterion = Criterion::default().without_plots();
    let mut group = criterion.benchmark_group("boot");
    group.sampling_mode(SamplingMode::Flat).sample_size(BOOTS);
    group
        .warm_up_time(Duration::from_millis(1))
        .measurement_time(Duration::from_millis(1));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|rounds| {
            let mut total = Duration::ZERO;
            for _ in 0..rounds {
                match command.run() {
                    Ok(boot) => {
                        total += Duration::from_nanos(boot.exec_to_init_ns);
                        boots.push(boot);
                    }
                    Err(error) => failure = Some(error),
                }
            }
            total
        });
    });
    group.finish();
    match failure {
        Some(error) => Err(error),
        None => Ok(boots),
    }
}

fn print_figures(shipped: &[Boot], reference: Option<&[Boot]>) -> Result<()> {
    print_phases(shipped)?;
    let compared = reference.unwrap_or(shipped);
    let ms =
        |boots: &[Boot], of: fn(&Boot) -> u64| Ok::<_, anyhow::Error>(median(boots, of)? / 1e6);
    if let Some(reference) = reference {
        print_phases(reference)?;
        print_figure(
            "boot.ref_exec_to_init",
            ms(reference, |boot| boot.exec_to_init_ns)?,
            "ms",
        );
    }
    print_figure(
        "boot.exec_to_init",
        ms(shipped, |boot| boot.exec_to_init_ns)?,
        "ms",
    );
    print_figure(
        "boot.before_entry",
        ms(compared, |boot| boot.before_entry_ns)?,
        "ms",
    );
    print_figure("boot.exits", median(compared, |boot| boot.exits)?, "exits");
    print_figure(
        "boot.exits_user",
        median(compared, |boot| boot.exits_user)?,
        "exits",
    );
    Ok(())
}

/// Where the time before the first entry goes.
fn print_phases(boots: &[Boot]) -> Result<()> {
    let Some(first) = boots.first() else {
        bail!("no boot was measured")
    };
    for (index, (name, _)) in first.phases.iter().enumerate() {
        let ends: Vec<f64> = boots
            .iter()
            .filter_map(|b| b.phases.get(index))
            .map(|p| p.1)
            .collect();
        let end = Median::of(&ends).context("too few boots")?;
        println!("  {name:16} done after {:8.3} ms", end.value);
    }
    Ok(())
}

fn median(boots: &[Boot], of: fn(&Boot) -> u64) -> Result<f64> {
    let sample: Vec<f64> = boots.iter().map(|boot| of(boot) as f64).collect();
    Ok(Median::of(&sample).context("too few boots")?.value)
}
