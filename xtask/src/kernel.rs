//! The guest kernel, built by guest-kernel/build.sh.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::progress::Step;
use crate::workspace;

/// Which kernel source to build.
#[derive(clap::Args, Default)]
pub struct KernelArgs {
    /// A kernel source tree to build instead of Debian's kernel source package.
    #[arg(long, value_name = "TREE")]
    pub kernel_source: Option<PathBuf>,
}

/// Builds the guest kernel, unless it is cached, and returns the folder that holds `vmlinux` and `bzImage`.
///
/// # Errors
/// The build fails; its messages are on stderr.
pub fn build(args: &KernelArgs) -> Result<PathBuf> {
    let step = Step::start("guest kernel");
    let mut command = Command::new(workspace::root().join("guest-kernel/build.sh"));
    if let Some(tree) = &args.kernel_source {
        command.arg("--source").arg(tree);
    }
    // The script's few messages are worth seeing in a log: the build is the longest of all steps.
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run guest-kernel/build.sh")?;
    if !output.status.success() {
        bail!("the guest kernel's build failed: {}", output.status);
    }
    step.done();
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim_end()))
}
