//! The Debian packages that building and running need, installed by name when they are missing.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::progress::Step;

/// What the guest kernel's build needs.
const KERNEL: &[&str] = &[
    "bc",
    "bison",
    "cpio",
    "flex",
    "gcc",
    "libc6-dev",
    "libelf-dev",
    "libssl-dev",
    "lz4",
    "make",
    "xz-utils",
];

/// What the node's images and the node itself need.
const NODE: &[&str] = &[
    "debian-archive-keyring",
    "e2fsprogs",
    "erofs-utils",
    "fdisk",
    "kmod",
    "mmdebstrap",
    "qemu-system-x86",
];

/// Installs what is missing; nothing happens when nothing is.
///
/// # Errors
/// This is not Debian, packages are missing and we are not root, or apt fails.
pub fn install() -> Result<()> {
    let missing = missing()?;
    if missing.is_empty() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "packages are missing; install them as root: apt-get install {}",
            missing.join(" ")
        );
    }
    let step = Step::start(format!("installing {} Debian packages", missing.len()));
    process::run(&step, apt_get().arg("update"))?;
    process::run(
        &step,
        apt_get()
            .args(["install", "--yes", "--no-install-recommends"])
            .args(missing),
    )?;
    step.done();
    Ok(())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .arg("--quiet")
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn missing() -> Result<Vec<&'static str>> {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"])
        .args(KERNEL.iter().chain(NODE))
        .output()
        .context("cannot run dpkg-query: this needs a Debian system")?;
    // dpkg-query fails when it does not know a package: what it does not list is missing.
    let listed = String::from_utf8(output.stdout)?;
    let is_installed = |package: &&&str| {
        listed
            .lines()
            .any(|line| line.split_once(' ') == Some((package, "installed")))
    };
    Ok(KERNEL
        .iter()
        .chain(NODE)
        .filter(|package| !is_installed(package))
        .copied()
        .collect())
}
