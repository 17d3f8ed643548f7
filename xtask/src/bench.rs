//! `cargo xtask bench`: builds the benchmarks and runs them where their figures mean something: on this machine when it has
//! virtualization of its own, else in a node.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::kernel::KernelArgs;
use crate::node::qemu::{self, Clock};
use crate::node::{self, Containerd, NodeOptions, Share};
use crate::progress::Step;
use crate::{dist, packages, process, workspace};

/// Benchmarks that compare by instructions where there is no real processor to time.
const BY_INSTRUCTIONS: &[&str] = &["boot"];

/// `cargo xtask bench …`
#[derive(clap::Args)]
pub struct BenchArgs {
    /// The benchmark; all without one.
    name: Option<String>,
    /// A kernel to boot beside ours (`boot`).
    #[arg(long, value_name = "FILE", requires = "initrd")]
    kernel: Option<PathBuf>,
    /// The initial image that goes with it.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The node's containerd version.
    #[arg(long, value_name = "VERSION", default_value = "2.1")]
    containerd: Containerd,
    /// Handed on to the benchmark.
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// A benchmark's program.
struct Bench {
    name: String,
    program: PathBuf,
}

/// Runs one benchmark, or all; their figures are the last lines on stdout.
///
/// # Errors
/// Something does not build, there is no such benchmark, or the node does not come up.
pub fn main(args: &BenchArgs) -> Result<ExitCode> {
    packages::install()?;
    let benches = build()?;
    let chosen: Vec<&Bench> = benches
        .iter()
        .filter(|bench| args.name.as_ref().is_none_or(|name| bench.name == *name))
        .collect();
    if chosen.is_empty() {
        let names: Vec<&str> = benches.iter().map(|bench| bench.name.as_str()).collect();
        bail!("no such benchmark; there are {}", names.join(", "));
    }
    let release = dist::build(&KernelArgs::default())?;
    for bench in chosen {
        let code = run(args, bench, &release)?;
        if code != 0 {
            return Ok(code.into());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn run(args: &BenchArgs, bench: &Bench, release: &Path) -> Result<u8> {
    // Without this word a criterion benchmark only tests itself.
    let mut command = vec![bench.program.display().to_string(), "--bench".to_owned()];
    let mut options = NodeOptions::new(args.containerd, release.to_owned());
    options
        .shares
        .push(Share::at_same_path(&workspace::target().join("release")));
    for (option, file) in [("--kernel", &args.kernel), ("--initrd", &args.initrd)] {
        let Some(file) = file else { continue };
        let file = file
            .canonicalize()
            .with_context(|| format!("cannot find {}", file.display()))?;
        command.extend([option.to_owned(), file.display().to_string()]);
        let share = Share::at_same_path(file.parent().context("not a file")?);
        if !options.shares.iter().any(|other| other.path == share.path) {
            options.shares.push(share);
        }
    }
    command.extend_from_slice(&args.arguments);
    eprintln!("xtask: benchmark {}", bench.name);
    if qemu::has_virtualization() {
        let (program, arguments) = command.split_first().context("no command")?;
        let status = process::passthrough(
            Command::new(program)
                .args(arguments)
                .env("PODVISOR_RELEASE", release),
        )?;
        return Ok(if status.success() { 0 } else { 1 });
    }
    if BY_INSTRUCTIONS.contains(&bench.name.as_str()) {
        options.clock = Clock::Instructions;
    }
    let installed = format!("/opt/podvisor/{}", workspace::VERSION);
    options
        .variables
        .push(("PODVISOR_RELEASE".to_owned(), installed));
    node::run(&options, &command)
}

/// The parts of a compiler message that name a program (cargo's documentation, "External tools", "Artifact messages").
#[derive(Deserialize)]
struct Artifact {
    reason: String,
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// Builds every benchmark.
fn build() -> Result<Vec<Bench>> {
    let step = Step::start("benchmarks");
    let mut command = workspace::cargo();
    command
        .args([
            "bench",
            "--quiet",
            "--no-run",
            "--package",
            "podvisor-benches",
        ])
        .args(["--message-format", "json-render-diagnostics"]);
    let messages = process::run_for_output(&step, &mut command)?;
    step.done();
    Ok(messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Artifact>(line).ok())
        .filter(|artifact| artifact.reason == "compiler-artifact")
        .filter_map(|artifact| {
            let target = artifact.target?;
            let is_bench = target.kind.iter().any(|kind| kind == "bench");
            is_bench.then_some(Bench {
                name: target.name,
                program: artifact.executable?,
            })
        })
        .collect())
}
