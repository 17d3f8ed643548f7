//! What the node and the test images take from Debian: root file systems and single packages of a suite.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{self, system_tool};
use crate::progress::Step;
use crate::workspace;

/// Debian 13: containerd 1.7, and the node's kernel.
pub const STABLE: &str = "trixie";
/// Debian unstable: containerd 2.1.
pub const UNSTABLE: &str = "unstable";

/// Files of packages that a machine without a reader does not need.
const EXCLUDED: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
];

/// An apt command for a suite, whatever suite this machine runs.
pub fn apt(suite: &str, program: &str) -> Command {
    let mut command = Command::new(workspace::xtask_file("debian-suite.sh"));
    command.args([suite, program]);
    command
}

/// Writes a minimal root file system of a suite with more packages to `target`: a folder, or an archive when it ends in `.tar`
/// or is a file.
///
/// # Errors
/// The packages cannot be fetched or installed.
pub fn write_root(step: &Step, suite: &str, packages: &[&str], target: &Path) -> Result<()> {
    write_root_with(step, suite, packages, &[], target)
}

/// As [`write_root`], with more options of mmdebstrap.
///
/// # Errors
/// The packages cannot be fetched or installed.
pub fn write_root_with(
    step: &Step,
    suite: &str,
    packages: &[&str],
    options: &[String],
    target: &Path,
) -> Result<()> {
    let sources = process::run_for_output(step, &mut apt(suite, "sources"))?;
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--variant=minbase", "--aptopt=Acquire::Languages \"none\""])
        // Mirrors that are snapshots serve Release files past their date.
        .arg("--aptopt=Acquire::Check-Valid-Until \"false\"");
    for pattern in EXCLUDED {
        command.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    if !packages.is_empty() {
        command.arg(format!("--include={}", packages.join(",")));
    }
    let format = if target.is_dir() { "directory" } else { "tar" };
    command.arg(format!("--format={format}")).args(options);
    process::run(step, command.arg(suite).arg(target).arg(sources))
}

/// Downloads a package and unpacks it into `folder` without running any of its scripts.
///
/// # Errors
/// The package does not exist or cannot be fetched.
pub fn unpack(step: &Step, suite: &str, package: &str, folder: &Path) -> Result<()> {
    let downloads = tempfile::tempdir()?;
    process::run(
        step,
        apt(suite, "apt-get")
            .args(["--quiet", "--quiet", "download", package])
            .current_dir(downloads.path()),
    )?;
    let file = fs::read_dir(downloads.path())?
        .next()
        .context("apt-get download left no file")??
        .path();
    process::run(
        step,
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(file)
            .arg(folder),
    )
}

/// The versioned package that a package without content of its own, such as linux-image-amd64, stands for at the moment.
///
/// # Errors
/// There is no such package, or it depends on none that begins with the words before its architecture.
pub fn package_behind(suite: &str, package: &str) -> Result<String> {
    let listed = process::output(apt(suite, "apt-cache").args(["depends", package]))?;
    listed
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .filter(|depended| depended.starts_with("linux-image-"))
        .map(str::to_owned)
        .with_context(|| format!("{package} depends on no kernel"))
}

/// The files of kernel modules and of what they depend on, each after its dependencies; `root` is the folder of `lib/modules`.
///
/// # Errors
/// There is no such module.
pub fn module_files(root: &Path, version: &str, names: &[&str]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for name in names {
        let listed = process::output(
            system_tool("modprobe")
                .arg("--show-depends")
                .arg("--dirname")
                .arg(root)
                .args(["--set-version", version, name]),
        )?;
        for line in listed.lines() {
            // "builtin NAME" or "insmod PATH OPTIONS"
            let file = line
                .strip_prefix("insmod ")
                .map(|rest| PathBuf::from(rest.trim()));
            files.extend(file.filter(|file| !files.contains(file)));
        }
    }
    Ok(files)
}

/// Unpacks Debian's static busybox below `folder` and returns its path.
///
/// # Errors
/// The package cannot be fetched.
pub fn busybox(step: &Step, folder: &Path) -> Result<PathBuf> {
    let unpacked = folder.join("busybox-static");
    fs::create_dir_all(&unpacked)?;
    unpack(step, STABLE, "busybox-static", &unpacked)?;
    // The package keeps it in /bin or /usr/bin, depending on the release.
    ["usr/bin/busybox", "bin/busybox"]
        .iter()
        .map(|path| unpacked.join(path))
        .find(|path| path.exists())
        .context("busybox-static has no busybox")
}
