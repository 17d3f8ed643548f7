//! `cargo xtask fuzz`: builds a fuzz target of `fuzz/` with the stable compiler and runs it.
//!
//! cargo-fuzz runs the same targets with a nightly compiler.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::progress::Step;
use crate::{dist, packages, process, workspace};

/// What makes the compiler report to libFuzzer which ways the program went.
const COVERAGE: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "--cfg=fuzzing",
];
/// The longest input.
const MAX_LEN: u32 = 128 << 10;
/// An input that takes longer is a finding.
const TIMEOUT_S: u32 = 20;
/// A target that takes more memory is a finding.
const MAX_MIB: u32 = 1024;

/// `cargo xtask fuzz …`
#[derive(clap::Args)]
pub struct FuzzArgs {
    /// The target: a file of fuzz/fuzz_targets.
    name: String,
    /// How long it runs.
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Handed on to libFuzzer.
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Runs a target over the corpus of earlier runs, which begins with the target's seeds.
///
/// # Errors
/// It does not build, or it finds something: then the input lies where libFuzzer says.
pub fn run(args: &FuzzArgs) -> Result<()> {
    packages::install()?;
    let program = build(&args.name)?;
    let corpus = workspace::target().join("fuzz/corpus").join(&args.name);
    let findings = workspace::target().join("fuzz/findings").join(&args.name);
    for folder in [&corpus, &findings] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let step = Step::start("seeds");
    let mut seeds = std::process::Command::new(&program);
    seeds.env("PODVISOR_FUZZ_SEEDS", &corpus);
    process::run_for_output(&step, &mut seeds)?;
    step.done();
    let mut command = std::process::Command::new(&program);
    command
        .arg(&corpus)
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .arg(format!("-max_total_time={}", args.seconds))
        .arg(format!("-max_len={MAX_LEN}"))
        .arg(format!("-timeout={TIMEOUT_S}"))
        .arg(format!("-rss_limit_mb={MAX_MIB}"))
        .args(&args.arguments);
    let status = process::passthrough(&mut command)?;
    anyhow::ensure!(status.success(), "{} has found something", args.name);
    Ok(())
}

fn build(name: &str) -> Result<PathBuf> {
    let step = Step::start("fuzz target");
    let folder = workspace::target().join("fuzz");
    let mut command = workspace::cargo();
    command
        .args(["build", "--quiet", "--release", "--locked"])
        .args(["--bin", name, "--target", dist::TRIPLE])
        .arg("--manifest-path")
        .arg(workspace::root().join("fuzz/Cargo.toml"))
        .arg("--target-dir")
        .arg(&folder)
        .env("RUSTFLAGS", COVERAGE.join(" "));
    process::run_for_output(&step, &mut command)?;
    step.done();
    Ok(folder.join(dist::TRIPLE).join("release").join(name))
}
