//! The folder that a running node shares with us: its init script, its configuration, the command, and its logs.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{Containerd, NodeOptions};
use crate::process;
use crate::workspace;

/// Largest size of the data disk, which is sparse.
const DATA_DISK_LEN: u64 = 24 << 30;

/// What the node calls this program.
const NODE_PROGRAM: &str = "xtask";
/// This program, whatever has become of its file (proc_pid_exe(5)).
const THIS_PROGRAM: &str = "/proc/self/exe";

/// A folder of the host that the node sees.
#[derive(Clone, Debug)]
pub struct Share {
    /// On this machine.
    pub folder: PathBuf,
    /// In the node; created there.
    pub path: String,
}

impl Share {
    /// A folder that has the same path in the node as here, so that paths compiled into programs hold in both.
    pub fn at_same_path(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            path: folder.display().to_string(),
        }
    }
}

/// The files of one run; they go when this does, except for the logs.
pub struct RunDir {
    folder: TempDir,
    containerd: Containerd,
    /// Locked while the run lives: what an interrupted run left is told from what is in use by this.
    _lock: File,
}

impl RunDir {
    /// Lays out everything that the node's init.sh expects.
    ///
    /// # Errors
    /// A file is missing or cannot be written.
    pub fn create(options: &NodeOptions, shares: &[Share], command: &str) -> Result<Self> {
        let run = Self::create_empty(options.containerd)?;
        let shared = run.shared();
        for file in ["init.sh", "modules.list", "cni.conflist", "hosts.toml"] {
            copy(
                &workspace::xtask_file("node").join(file),
                &shared.join(file),
            )?;
        }
        copy(
            &options.containerd.config(),
            &shared.join("containerd.toml"),
        )?;
        copy(&options.containerd.drop_in(), &shared.join("drop-in.toml"))?;
        fs::create_dir(shared.join("bin"))?;
        copy(
            Path::new(THIS_PROGRAM),
            &shared.join("bin").join(NODE_PROGRAM),
        )?;
        let mut lines = String::new();
        for (index, share) in shares.iter().enumerate() {
            writeln!(lines, "{} {}", Self::tag(index), share.path)?;
        }
        fs::write(shared.join("shares"), lines)?;
        fs::write(shared.join("command"), command)?;
        run.create_data_disk()?;
        Ok(run)
    }

    /// The mount tag of the share at `index`.
    pub fn tag(index: usize) -> String {
        format!("share{index}")
    }

    /// What the node mounts at `/node`.
    pub fn shared(&self) -> PathBuf {
        self.folder.path().join("shared")
    }

    /// The raw image of the node's data disk.
    pub fn data_disk(&self) -> PathBuf {
        self.folder.path().join("data.raw")
    }

    /// What the node's kernel and init wrote to their console.
    pub fn console_log(&self) -> PathBuf {
        self.shared().join("console.log")
    }

    /// Copies the logs to `target/node/logs/VERSION` and returns that folder.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn keep_logs(&self) -> Result<PathBuf> {
        let logs = workspace::target()
            .join("node/logs")
            .join(self.containerd.version());
        fs::create_dir_all(&logs)?;
        for log in ["console.log", "containerd.log", "registry.log"] {
            let from = self.shared().join(log);
            if from.exists() {
                fs::copy(from, logs.join(log))?;
            }
        }
        Ok(logs)
    }

    /// Makes the folder, and removes those of runs that were interrupted.
    fn create_empty(containerd: Containerd) -> Result<Self> {
        let base = workspace::target().join("node/runs");
        fs::create_dir_all(&base)?;
        let starting = File::create(base.join("lock"))?;
        starting.lock()?;
        for entry in fs::read_dir(&base)? {
            let folder = entry?.path();
            let is_over = File::open(folder.join("lock")).is_ok_and(|lock| lock.try_lock().is_ok());
            if is_over {
                fs::remove_dir_all(folder)?;
            }
        }
        let folder = tempfile::tempdir_in(&base)?;
        let lock = File::create(folder.path().join("lock"))?;
        lock.lock()?;
        fs::create_dir(folder.path().join("shared"))?;
        Ok(Self {
            folder,
            containerd,
            _lock: lock,
        })
    }

    /// No journal and no zeroed inode tables: the disk lives for one run and should cost nothing to make.
    fn create_data_disk(&self) -> Result<()> {
        File::create(self.data_disk())?.set_len(DATA_DISK_LEN)?;
        process::output(
            process::system_tool("mkfs.ext4")
                .args([
                    "-q",
                    "-O",
                    "^has_journal",
                    "-E",
                    "lazy_itable_init=1,nodiscard",
                ])
                .arg(self.data_disk()),
        )?;
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    let mode = fs::metadata(to)?.permissions().mode();
    fs::set_permissions(to, fs::Permissions::from_mode(mode | 0o444))?;
    Ok(())
}
