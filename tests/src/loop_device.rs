//! Block devices of the node, on files of their own.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use tempfile::NamedTempFile;

/// A loop device, gone when dropped.
pub struct LoopDevice {
    file: NamedTempFile,
    path: PathBuf,
}

impl LoopDevice {
    /// A device of `len` bytes, all of them zero.
    ///
    /// # Errors
    /// When the node has none left.
    pub fn new(len: u64) -> Result<Self> {
        let file = NamedTempFile::new_in("/var/tmp")?;
        file.as_file().set_len(len)?;
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file.path())
            .output()?;
        let path = String::from_utf8(output.stdout)?;
        ensure!(output.status.success(), "losetup: {}", output.status);
        Ok(Self {
            file,
            path: path.trim().into(),
        })
    }

    /// The device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that it is on.
    #[must_use]
    pub fn file(&self) -> &File {
        self.file.as_file()
    }

    /// What is on it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn content(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        // The device's own cache is the node's, not the file's.
        Command::new("sync").status()?;
        let mut content = vec![0; len];
        File::open(self.file.path())?.read_exact_at(&mut content, offset)?;
        Ok(content)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup")
            .arg("--detach")
            .arg(&self.path)
            .status();
        if !detached.is_ok_and(|status| status.success()) {
            eprintln!("{} stays", self.path.display());
        }
    }
}
