//! A disk behind virtio-blk, of our VMM and of QEMU: the same file, guest kernel and initial image
//! (the program `block-load`), in alternating pairs. Both cache in the host's page cache, heed flushes,
//! use `io_uring`, and serve the disk by one thread.
//!
//! Runs in a node, whose QEMU it takes. `block [PAIRS]`.

mod machine;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use podvisor_benches::{Median, print_figure};
use podvisor_tests::{InitialImage, node};

use machine::{Files, Measured, Vmm};

/// Pairs for each format, unless told otherwise: enough for bounds.
const PAIRS: usize = 7;
const DISK_LEN: u64 = 128 << 20;
const FORMATS: [&str; 2] = ["raw", "qcow2"];

/// Ratios of throughput, ours to QEMU's, for each format and workload: one for each pair.
type Ratios = BTreeMap<(&'static str, String), Vec<f64>>;

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let pairs = words.next().map(|word| word.parse()).transpose()?;
    // On the node's ext4: what is in memory only is no file system that people have disks on.
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let files = files(folder.path())?;
    let mut ratios = Ratios::new();
    let mut costs: BTreeMap<(&str, String), Vec<[f64; 2]>> = BTreeMap::new();
    for pair in 0..pairs.unwrap_or(PAIRS) {
        for format in FORMATS {
            let [ours, qemu] = measure(&files, format, pair % 2 == 0)?;
            for (name, ours) in ours {
                let theirs = qemu.get(&name).context("a workload is missing")?;
                let ratio = ours.throughput / theirs.throughput;
                eprintln!("{pair} {format} {name}: {ratio:.3}");
                let key = (format, name);
                ratios.entry(key.clone()).or_default().push(ratio);
                let cost = [ours.cpu_us, theirs.cpu_us];
                costs.entry(key).or_default().push(cost);
            }
        }
    }
    print(&ratios, &costs)
}

/// One run of each, in an order that alternates.
fn measure(
    files: &Files,
    format: &'static str,
    ours_first: bool,
) -> Result<[BTreeMap<String, Measured>; 2]> {
    let run = |vmm| machine::run(files, vmm, format);
    if ours_first {
        let ours = run(Vmm::Ours)?;
        Ok([ours, run(Vmm::Qemu)?])
    } else {
        let qemu = run(Vmm::Qemu)?;
        Ok([run(Vmm::Ours)?, qemu])
    }
}

fn files(folder: &Path) -> Result<Files> {
    let release = match std::env::var_os("PODVISOR_RELEASE") {
        Some(release) => PathBuf::from(release),
        None => node::release()?,
    };
    let kernel = folder.join("vmlinux");
    fs::copy(release.join("vmlinux"), &kernel).context("cannot read the guest kernel")?;
    let load = fs::read(env!("CARGO_BIN_EXE_block-load"))?;
    let initrd = folder.join("initrd");
    let image = InitialImage::new()
        .folder("dev")
        .device("dev/console", (5, 1))
        .program("init", &load);
    fs::write(&initrd, image.finish())?;
    let raw = folder.join("disk.raw");
    File::create(&raw)?.set_len(DISK_LEN)?;
    let qcow2 = folder.join("disk.qcow2");
    for (format, disk) in [("raw", &raw), ("qcow2", &qcow2)] {
        let status = Command::new("qemu-img")
            .args(["create", "-q", "-f", format, "-o", "preallocation=full"])
            .arg(disk)
            .arg(DISK_LEN.to_string())
            .status()
            .context("cannot run qemu-img")?;
        ensure!(status.success(), "qemu-img: {status}");
    }
    Ok(Files {
        driver: env!("CARGO_BIN_EXE_block-driver").into(),
        kernel,
        initrd,
        disks: folder.to_owned(),
    })
}

fn print(ratios: &Ratios, costs: &BTreeMap<(&str, String), Vec<[f64; 2]>>) -> Result<()> {
    for ((format, name), costs) in costs {
        for (index, whose) in ["", "_qemu"].into_iter().enumerate() {
            let costs: Vec<f64> = costs
                .iter()
                .filter_map(|cost| cost.get(index).copied())
                .collect();
            let figure = format!("block.{format}_{name}_cpu{whose}");
            print_figure(
                &figure,
                Median::of(&costs).context("too few pairs")?.value,
                "us",
            );
        }
    }
    for ((format, name), ratios) in ratios {
        print_ratio(&format!("block.{format}_{name}_ratio"), ratios)?;
    }
    for kind in ["seq", "random"] {
        let of_kind = ratios
            .iter()
            .filter(|((_, name), _)| name.starts_with(kind))
            .map(|(_, ratios)| ratios.as_slice());
        print_ratio(&format!("block.{kind}_ratio"), &geometric_means(of_kind))?;
    }
    Ok(())
}

fn print_ratio(name: &str, ratios: &[f64]) -> Result<()> {
    let median = Median::of(ratios).context("too few pairs")?;
    print_figure(name, median.value, "ratio");
    print_figure(&format!("{name}_low"), median.low, "ratio");
    print_figure(&format!("{name}_high"), median.high, "ratio");
    Ok(())
}

/// For each pair, the mean of all its workloads.
fn geometric_means<'a>(workloads: impl Iterator<Item = &'a [f64]>) -> Vec<f64> {
    let mut sums: Vec<f64> = Vec::new();
    let mut count = 0.0;
    for ratios in workloads {
        sums.resize(ratios.len(), 0.0);
        for (sum, ratio) in sums.iter_mut().zip(ratios) {
            *sum += ratio.ln();
        }
        count += 1.0;
    }
    sums.into_iter().map(|sum| (sum / count).exp()).collect()
}
