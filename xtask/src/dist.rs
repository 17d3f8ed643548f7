//! A release: one folder with kernel, initial images, shim and command line tool side by side.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::kernel::KernelArgs;
use crate::process;
use crate::progress::Step;
use crate::{initrd, kernel, workspace};

const SHIM: &str = "containerd-shim-podvisor-v2";
const CLI: &str = "podvisor";
const AGENT: &str = "podvisor-agent";
/// What programs are built for where cargo has to be told.
pub const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The folder of the current version's release, whether it was built or not.
pub fn folder() -> PathBuf {
    workspace::target()
        .join("dist")
        .join(format!("podvisor-{}", workspace::VERSION))
}

/// Builds everything and puts it into the release folder, which is returned.
///
/// # Errors
/// A part does not build, or the folder cannot be written.
pub fn build(args: &KernelArgs) -> Result<PathBuf> {
    let _turn = take_turn()?;
    let kernel = kernel::build(args)?;
    let agent = build_agent()?;
    let programs = build_programs()?;
    let folder = folder();
    fs::create_dir_all(&folder)?;
    install(&kernel.join("vmlinux"), &folder.join("vmlinux"))?;
    for program in [SHIM, CLI] {
        install(&programs.join(program), &folder.join(program))?;
    }
    // Machines get it on a disk, to run it as a service.
    install(&agent, &folder.join(AGENT))?;
    initrd::write(&agent, &folder.join("initrd.cpio"))?;
    let machine_initrd = folder.join("machine-initrd.cpio");
    initrd::write_for_machines(&agent, &kernel.join("modules"), &machine_initrd)?;
    Ok(folder)
}

/// Lets one process of this tree at a time build the release: the file is locked until it is
/// closed.
fn take_turn() -> Result<File> {
    let path = workspace::target().join("dist.lock");
    fs::create_dir_all(workspace::target())?;
    let lock = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    lock.lock()?;
    Ok(lock)
}

/// The agent is the guest's only program: linked statically, built small, apart from what links dynamically.
fn build_agent() -> Result<PathBuf> {
    let step = Step::start("agent");
    let target = workspace::target().join("agent");
    process::run(
        &step,
        workspace::cargo()
            .args(["build", "--package", "podvisor-agent"])
            // With a named target, the flags below do not reach build scripts and procedural macros.
            .args(["--profile", "agent", "--target", TRIPLE])
            .arg("--target-dir")
            .arg(&target)
            .env("RUSTFLAGS", "-C target-feature=+crt-static"),
    )?;
    step.done();
    Ok(target.join(TRIPLE).join("agent").join(AGENT))
}

fn build_programs() -> Result<PathBuf> {
    let step = Step::start("shim and command line tool");
    process::run(
        &step,
        workspace::cargo().args(["build", "--release", "--bin", SHIM, "--bin", CLI]),
    )?;
    step.done();
    Ok(workspace::target().join("release"))
}

/// Replaces `to` in one step: a program that runs from it keeps its own copy.
fn install(from: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension("new");
    fs::copy(from, &new).with_context(|| format!("cannot copy {}", from.display()))?;
    fs::rename(new, to)?;
    Ok(())
}
