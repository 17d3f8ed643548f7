//! `cargo xtask demo`: from a fresh machine to a pod in a VM.

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

/// `cargo xtask demo …`
#[derive(clap::Args)]
pub struct DemoArgs {
    /// Run on this machine, which needs containerd and real virtualization, instead of in a node.
    #[arg(long)]
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
    let mut command = vec!["podvisor".to_owned()];
    command.extend(RUN.map(str::to_owned));
    command.push(format!("/examples/{MANIFEST}"));
    Ok(node::run(&options, &command)?.into())
}
