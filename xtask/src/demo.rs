//! `cargo xtask demo`: from a fresh machine to a pod in a VM, or to a pod that is one.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::kernel::KernelArgs;
use crate::node::{self, Containerd, NodeOptions, Share};
use crate::{dist, packages, process, workspace};

/// The arguments of `podvisor` before the manifest: the tour shows the VM from its boot to what it leaves behind.
const RUN: [&str; 3] = ["run", "--rm", "--tour"];
/// The demo's pod, below the repository.
const EXAMPLES: &str = "runtimeclass/examples";
const MANIFEST: &str = "hello.yaml";

/// The pod of the other demo, and the script that runs it.
const MACHINE_MANIFEST: &str = "machine.yaml";
const MACHINE_SCRIPT: &str = "demo-machine.sh";

/// What is shown.
#[derive(Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Show {
    /// A pod of containers.
    #[default]
    Containers,
    /// A pod that is a machine with a disk of its own, from its first boot to SSH.
    Machine,
}

/// `cargo xtask demo …`
#[derive(clap::Args)]
pub struct DemoArgs {
    /// What to show.
    #[arg(default_value = "containers")]
    show: Show,
    /// Run on this machine, which needs containerd and real virtualization, instead of in a node.
    #[arg(long, conflicts_with = "show")]
    host: bool,
    /// The node's containerd version.
    #[arg(
        long,
        value_name = "VERSION",
        default_value = "2.1",
        conflicts_with = "host"
    )]
    containerd: Containerd,
}

/// Builds everything and runs the demo's pod; the exit code is that of `podvisor run`.
///
/// # Errors
/// Something does not build, or the node does not come up.
pub fn main(args: &DemoArgs) -> Result<ExitCode> {
    packages::install()?;
    let release = dist::build(&KernelArgs::default())?;
    if args.host {
        let podvisor = release.join("podvisor");
        process::check(Command::new(&podvisor).arg("check"))?;
        let manifest = workspace::root().join(EXAMPLES).join(MANIFEST);
        let status = process::passthrough(Command::new(podvisor).args(RUN).arg(manifest))?;
        return Ok(if status.success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    let mut options = NodeOptions::new(args.containerd, release);
    options.shares.push(Share {
        folder: workspace::root().join(EXAMPLES),
        path: "/examples".into(),
    });
    Ok(match args.show {
        Show::Containers => {
            let mut command = vec!["podvisor".to_owned()];
            command.extend(RUN.map(str::to_owned));
            command.push(format!("/examples/{MANIFEST}"));
            node::run(&options, &command)?
        }
        Show::Machine => {
            options.machines = true;
            options.shares.push(Share {
                folder: workspace::xtask_file("node"),
                path: "/scripts".into(),
            });
            let script = format!("/scripts/{MACHINE_SCRIPT}");
            let manifest = format!("/examples/{MACHINE_MANIFEST}");
            node::run(&options, &["bash".to_owned(), script, manifest])?
        }
    }
    .into())
}
