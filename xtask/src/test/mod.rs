//! `cargo xtask test`: everything that CI runs, and the tests that are too long for it.

mod dependencies;
mod long;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use crate::kernel::{self, KernelArgs};
use crate::node::{self, Containerd, NodeOptions, Share};
use crate::process;
use crate::progress::Step;
use crate::{dist, packages, workspace};

/// `cargo xtask test …`; everything but the long tests without a word more.
#[derive(Args)]
pub struct TestArgs {
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Subcommand)]
enum Part {
    /// Format, lints, dependency rules and the tests that need no node.
    Unit,
    /// The node suite under both containerd versions.
    Node(NodeArgs),
    /// The tests that take too long for every change; those that passed with this commit are not repeated.
    Long(NodeArgs),
}

/// Which of the node suite's tests to run, and where.
#[derive(Args, Default)]
pub struct NodeArgs {
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// Only under this containerd version.
    #[arg(long, value_name = "VERSION")]
    containerd: Option<Containerd>,
    /// Set a variable for the suite.
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = node::parse_variable)]
    variables: Vec<(String, String)>,
}

impl NodeArgs {
    fn versions(&self) -> Vec<Containerd> {
        match self.containerd {
            Some(containerd) => vec![containerd],
            None => Containerd::ALL.to_vec(),
        }
    }
}

/// Runs the tests.
///
/// # Errors
/// Something does not build, or a check or a test fails.
pub fn main(args: &TestArgs) -> Result<ExitCode> {
    packages::install()?;
    match &args.part {
        None => {
            unit()?;
            node_suite(&NodeArgs::default())?;
        }
        Some(Part::Unit) => unit()?,
        Some(Part::Node(args)) => node_suite(args)?,
        Some(Part::Long(args)) => long::run(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn unit() -> Result<()> {
    let cargo_step = |name: &'static str, arguments: &[&str]| {
        let step = Step::start(name);
        process::run(&step, workspace::cargo().args(arguments))?;
        step.done();
        anyhow::Ok(())
    };
    let step = Step::start("dependency rules");
    dependencies::check()?;
    step.done();
    cargo_step(
        "format",
        &["fmt", "--all", "--check", "--", "--color=never"],
    )?;
    cargo_step(
        "lints",
        &[
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ],
    )?;
    cargo_step("unit tests", &["test", "--quiet", "--workspace"])
}

/// Runs the node suite in a node of each version; the suite's own output is ours.
fn node_suite(args: &NodeArgs) -> Result<()> {
    let release = dist::build(&KernelArgs::default())?;
    let suite = build_suite()?;
    let filter: Vec<String> = args.filter.iter().cloned().collect();
    let mut failed = Vec::new();
    for containerd in args.versions() {
        eprintln!(
            "xtask: node suite under containerd {}",
            containerd.version()
        );
        let mut options = NodeOptions::new(containerd, release.clone());
        options.variables.clone_from(&args.variables);
        if run_suite(&suite, options, &filter)? != 0 {
            failed.push(containerd.version());
        }
    }
    if !failed.is_empty() {
        bail!(
            "the node suite failed under containerd {}",
            failed.join(" and ")
        );
    }
    Ok(())
}

/// Builds the suite's program and returns its path.
fn build_suite() -> Result<PathBuf> {
    let step = Step::start("node suite");
    process::run(
        &step,
        workspace::cargo().args(["build", "--release", "--bin", "node-suite"]),
    )?;
    step.done();
    Ok(workspace::target().join("release/node-suite"))
}

/// Runs the suite in a node and returns its exit code.
fn run_suite(
    suite: &std::path::Path,
    mut options: NodeOptions,
    arguments: &[String],
) -> Result<u8> {
    options
        .shares
        .push(Share::at_same_path(&workspace::target().join("release")));
    // A release has no bzImage, yet machines boot those, too.
    let kernel = kernel::build(&KernelArgs::default())?;
    options.shares.push(Share::at_same_path(&kernel));
    let bzimage = kernel.join("bzImage").display().to_string();
    options
        .variables
        .push(("PODVISOR_BZIMAGE".to_owned(), bzimage));
    let mut command = vec![suite.display().to_string()];
    command.extend_from_slice(arguments);
    // An emulated node can die of its emulation, which says nothing of the suite: once more, from the start.
    node::run(&options, &command).or_else(|error| {
        eprintln!("xtask: the node died: {error:#}; starting another one");
        node::run(&options, &command)
    })
}
