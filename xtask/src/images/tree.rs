//! The root file systems of the test images, as tar archives.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::node::debian;
use crate::process;
use crate::progress::Step;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    daemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
    app:x:1000:1000:app:/home/app:/bin/sh\n\
    nobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nextra:x:999:app\napp:x:1000:\nnogroup:x:65534:\n";

/// What an image's root holds.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tree {
    /// busybox with all its applets.
    Busybox,
    /// A minimal Debian.
    Debian,
}

impl Tree {
    /// Writes the tree as a tar archive.
    ///
    /// # Errors
    /// Debian's packages cannot be fetched, or the archive cannot be written.
    pub fn write(self, step: &Step, archive: &Path) -> Result<()> {
        match self {
            Self::Busybox => busybox(step, archive),
            Self::Debian => debian::write_root(step, debian::STABLE, &[], archive),
        }
    }
}

fn busybox(step: &Step, archive: &Path) -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let root = temporary.path().join("root");
    for folder in [
        "bin", "dev", "etc", "home/app", "proc", "root", "sys", "tmp", "var/tmp",
    ] {
        fs::create_dir_all(root.join(folder))?;
    }
    for shared in ["tmp", "var/tmp"] {
        fs::set_permissions(root.join(shared), fs::Permissions::from_mode(0o1777))?;
    }
    fs::write(root.join("etc/passwd"), PASSWD)?;
    fs::write(root.join("etc/group"), GROUP)?;
    let program = debian::busybox(step, temporary.path())?;
    fs::copy(&program, root.join("bin/busybox"))?;
    for applet in process::output(Command::new(&program).arg("--list"))?.lines() {
        if applet != "busybox" {
            symlink("busybox", root.join("bin").join(applet))
                .with_context(|| format!("cannot link {applet}"))?;
        }
    }
    let tar = Command::new("tar")
        .args([
            "--create",
            "--sort=name",
            "--mtime=@0",
            "--owner=0",
            "--group=0",
            "--numeric-owner",
        ])
        .arg("--directory")
        .arg(&root)
        .arg(".")
        .stdout(File::create(archive)?)
        .status()
        .context("cannot run tar")?;
    anyhow::ensure!(tar.success(), "tar failed: {tar}");
    Ok(())
}
