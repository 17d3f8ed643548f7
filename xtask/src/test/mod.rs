//! `cargo xtask test`: everything that CI runs, and the tests that are too long for it.

mod dependencies;
mod long;

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use clap::{Args, Subcommand};

use crate::kernel::{self, KernelArgs};
use crate::node::{self, Containerd, NodeOptions, Share};
use crate::process;
use crate::progress::Step;
use crate::{dist, packages, workspace};

/// What every change is tested with never takes this long: a node that is not done by then hangs, and its console tells more than waiting
/// would.
const GATE_LIMIT: Duration = Duration::from_secs(45 * 60);
/// The same for a run of long tests.
const LONG_LIMIT: Duration = Duration::from_secs(120 * 60);

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

/// Runs the node suite in a node of each version; the suite's own output is ours. Whoever names neither test nor version
/// has the versions share what is the same under all of them.
fn node_suite(args: &NodeArgs) -> Result<()> {
    let nodes = Nodes::build(args)?;
    let shares = args.filter.is_none() && args.containerd.is_none();
    nodes.in_each(|containerd| {
        let mut arguments: Vec<String> = args.filter.iter().cloned().collect();
        if shares {
            arguments.extend(["--share".to_owned(), containerd.number().to_string()]);
        }
        if nodes.run_suite(containerd, &arguments, GATE_LIMIT)? != 0 {
            bail!(
                "the node suite failed under containerd {}",
                containerd.version()
            );
        }
        Ok(())
    })
}

/// The nodes that a test runs in: one of each containerd version, all at the same time.
struct Nodes {
    versions: Vec<Containerd>,
    variables: Vec<(String, String)>,
    release: PathBuf,
    suite: PathBuf,
    kernel: PathBuf,
}

impl Nodes {
    /// Builds everything that the nodes share.
    fn build(args: &NodeArgs) -> Result<Self> {
        let kernel_args = KernelArgs::default();
        node::build()?;
        Ok(Self {
            versions: args.versions(),
            variables: args.variables.clone(),
            release: dist::build(&kernel_args)?,
            suite: build_suite()?,
            kernel: kernel::build(&kernel_args)?,
        })
    }

    /// Carries `test` out for every version, and fails with all that failed.
    fn in_each(&self, test: impl Fn(Containerd) -> Result<()> + Sync) -> Result<()> {
        let errors: Vec<_> = thread::scope(|scope| {
            let tests: Vec<_> = self
                .versions
                .iter()
                .map(|&containerd| {
                    let test = &test;
                    scope.spawn(move || test(containerd))
                })
                .collect();
            tests
                .into_iter()
                .filter_map(|test| match test.join() {
                    Ok(result) => result.err(),
                    Err(_) => Some(anyhow!("a test of ours panicked")),
                })
                .collect()
        });
        match errors.as_slice() {
            [] => Ok(()),
            errors => bail!(
                "{}",
                errors
                    .iter()
                    .map(|error| format!("{error:#}"))
                    .collect::<Vec<_>>()
                    .join("; ")
            ),
        }
    }

    /// Runs the suite in a node and returns its exit code.
    fn run_suite(
        &self,
        containerd: Containerd,
        arguments: &[String],
        limit: Duration,
    ) -> Result<u8> {
        let mut options = NodeOptions::new(containerd, self.release.clone());
        options.is_one_of_several = self.versions.len() > 1;
        options.limit = Some(limit);
        options.machines = true;
        options.variables.clone_from(&self.variables);
        // A release has no bzImage, yet machines boot those, too.
        let bzimage = self.kernel.join("bzImage").display().to_string();
        options
            .variables
            .push(("PODVISOR_BZIMAGE".to_owned(), bzimage));
        if let Some(handler) = containerd.sandboxer_handler() {
            let variable = ("PODVISOR_SANDBOXER_HANDLER".to_owned(), handler.to_owned());
            options.variables.push(variable);
        }
        options
            .shares
            .push(Share::at_same_path(&workspace::target().join("release")));
        options.shares.push(Share::at_same_path(&self.kernel));
        let mut command = vec![self.suite.display().to_string()];
        command.extend_from_slice(arguments);
        node::run(&options, &command)
    }
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
