//! `cargo xtask bench`: builds the benchmarks and runs them where their figures mean something: on this machine when it has
//! virtualization of its own, else in a node.

mod programs;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::kernel::KernelArgs;
use crate::node::qemu::{self, Clock};
use crate::node::{self, Containerd, NodeOptions, Share};
use crate::{dist, packages, process, workspace};
use programs::{Bench, Programs};

/// Benchmarks that compare by instructions where there is no real processor to time.
const BY_INSTRUCTIONS: &[&str] = &["boot", "net", "pod"];
/// Benchmarks that boot the images of machines.
const OF_MACHINES: &[&str] = &["machine"];
/// Benchmarks of plain computation: they need neither virtualization nor containerd.
const ANYWHERE: &[&str] = &["queues"];

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
    /// The node's clock, in place of the benchmark's usual one.
    #[arg(long)]
    clock: Option<Clock>,
    /// Handed on to the benchmark.
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Runs one benchmark, or all; their figures are the last lines on stdout.
///
/// # Errors
/// Something does not build, there is no such benchmark, or the node does not come up.
pub fn main(args: &BenchArgs) -> Result<ExitCode> {
    packages::install()?;
    let programs = programs::build()?;
    let chosen: Vec<&Bench> = programs
        .benches
        .iter()
        .filter(|bench| args.name.as_ref().is_none_or(|name| bench.name == *name))
        .collect();
    if chosen.is_empty() {
        let names = programs.benches.iter().map(|bench| bench.name.as_str());
        let names: Vec<&str> = names.collect();
        bail!("no such benchmark; there are {}", names.join(", "));
    }
    let release = dist::build(&KernelArgs::default())?;
    for bench in chosen {
        eprintln!("xtask: benchmark {}", bench.name);
        let here = ANYWHERE.contains(&bench.name.as_str()) || qemu::has_virtualization();
        let code = if here {
            run_here(args, bench, &release)?
        } else {
            run_in_node(args, bench, &programs, &release)?
        };
        if code != 0 {
            return Ok(code.into());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The files that the benchmark gets, with the options that name them to it.
fn files(args: &BenchArgs) -> Result<Vec<(&'static str, PathBuf)>> {
    let named = [("--kernel", &args.kernel), ("--initrd", &args.initrd)];
    let mut files = Vec::new();
    for (option, file) in named {
        let Some(file) = file else { continue };
        let file = file
            .canonicalize()
            .with_context(|| format!("cannot find {}", file.display()))?;
        files.push((option, file));
    }
    Ok(files)
}

fn command(args: &BenchArgs, bench: &Bench) -> Result<Vec<String>> {
    // Without this word a criterion benchmark only tests itself.
    let mut command = vec![bench.program.display().to_string(), "--bench".to_owned()];
    for (option, file) in files(args)? {
        command.extend([option.to_owned(), file.display().to_string()]);
    }
    command.extend_from_slice(&args.arguments);
    Ok(command)
}

fn run_here(args: &BenchArgs, bench: &Bench, release: &Path) -> Result<u8> {
    let command = command(args, bench)?;
    let (program, arguments) = command.split_first().context("no command")?;
    let status = process::passthrough(
        Command::new(program)
            .args(arguments)
            .env("PODVISOR_RELEASE", release),
    )?;
    Ok(if status.success() { 0 } else { 1 })
}

fn usual_clock(bench: &str) -> Clock {
    if BY_INSTRUCTIONS.contains(&bench) {
        Clock::Instructions
    } else {
        Clock::Wall
    }
}

/// Runs a benchmark in a node, where every file has the path that it has here.
///
/// Files are copied, not used from the share: their pages would come over it while time is measured.
fn run_in_node(args: &BenchArgs, bench: &Bench, programs: &Programs, release: &Path) -> Result<u8> {
    let mut options = NodeOptions::new(args.containerd, release.to_owned());
    options.machines = OF_MACHINES.contains(&bench.name.as_str());
    options.clock = args.clock.unwrap_or_else(|| usual_clock(&bench.name));
    let installed = format!("/opt/podvisor/{}", workspace::VERSION);
    let variable = ("PODVISOR_RELEASE".to_owned(), installed);
    options.variables.push(variable);
    if options.clock == Clock::Instructions {
        let variable = ("PODVISOR_CLOCK_INSTRUCTIONS".to_owned(), "1".to_owned());
        options.variables.push(variable);
    }

    let mut copied = vec![bench.program.clone()];
    copied.extend_from_slice(&programs.helpers);
    copied.extend(files(args)?.into_iter().map(|(_, file)| file));
    let mut script = String::from("set -e\n");
    for file in &copied {
        let folder = file.parent().context("a file without a folder")?;
        let shared = format!("/host{}", folder.display());
        let name = file.file_name().context("a file without a name")?;
        let (source, target) = (
            node::quoted(&format!("{shared}/{}", name.display())),
            node::quoted(&file.display().to_string()),
        );
        writeln!(script, "install -D {source} {target}")?;
        if !options.shares.iter().any(|share| share.path == shared) {
            options.shares.push(Share {
                folder: folder.to_owned(),
                path: shared,
            });
        }
    }
    script += "exec \"$@\"\n";
    let mut words = ["bash", "-c", &script, "bench"].map(str::to_owned).to_vec();
    words.extend(command(args, bench)?);
    node::run(&options, &words)
}
