//! The node itself: its containerd and its configuration.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// Where containerd's own messages and those of all shims go.
pub const CONTAINERD_LOG: &str = "/node/containerd.log";
/// Podvisor's configuration of this node.
const CONFIGURATION: &str = "/etc/podvisor/podvisor.toml";

/// Ends containerd and starts it again; returns when the new one runs, which may be before it
/// answers.
///
/// # Errors
/// When there is no containerd, or it does not end, or cannot be started.
pub fn restart_containerd() -> Result<()> {
    let pid = containerd().context("containerd does not run")?;
    kill(pid, Signal::SIGTERM)?;
    wait::until("end of containerd", Duration::from_secs(60), || {
        Ok(containerd().is_none().then_some(()))
    })?;
    let log = OpenOptions::new().append(true).open(CONTAINERD_LOG)?;
    let mut command = Command::new("containerd");
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    Ok(())
}

fn containerd() -> Option<Pid> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        let state = fs::read_to_string(entry.path().join("stat")).ok()?;
        // An ended one stays as a zombie where nobody waits for it.
        let alive = !state.contains(") Z ");
        (alive && name.trim() == "containerd").then(|| Pid::from_raw(pid))
    })
}

/// Podvisor's configuration, changed for as long as this lives.
pub struct Configuration {
    path: PathBuf,
    before: Option<Vec<u8>>,
}

impl Configuration {
    /// Replaces the node's podvisor.toml.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set(content: &str) -> Result<Self> {
        Self::set_at(Path::new(CONFIGURATION), content)
    }

    /// Replaces the configuration of a class.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_at(path: &Path, content: &str) -> Result<Self> {
        let before = fs::read(path).ok();
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        fs::write(path, content)?;
        let path = path.to_owned();
        Ok(Self { path, before })
    }
}

impl Drop for Configuration {
    fn drop(&mut self) {
        let result = match &self.before {
            Some(content) => fs::write(&self.path, content),
            None => fs::remove_file(&self.path),
        };
        if let Err(error) = result {
            eprintln!("{} is not as it was: {error}", self.path.display());
        }
    }
}

/// The folder of the installed release.
///
/// # Errors
/// When no shim is installed.
pub fn release() -> Result<PathBuf> {
    let shim = fs::canonicalize("/usr/local/bin/containerd-shim-podvisor-v2")?;
    Ok(shim
        .parent()
        .context("the shim lies in no folder")?
        .to_owned())
}
