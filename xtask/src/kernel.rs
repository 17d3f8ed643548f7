//! The guest kernel, built by guest-kernel/build.sh.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::progress::Step;
use crate::{process, workspace};

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
/// The build fails.
pub fn build(args: &KernelArgs) -> Result<PathBuf> {
    let step = Step::start("guest kernel (minutes, when it is not cached)");
    let mut command = Command::new(workspace::root().join("guest-kernel/build.sh"));
    if let Some(tree) = &args.kernel_source {
        command.arg("--source").arg(tree);
    }
    let folder = process::run_for_output(&step, &mut command)?;
    step.done();
    Ok(PathBuf::from(folder))
}
