//! What is expensive to build and the same for every checkout is kept under `~/.cache/podvisor`, named by a hash of
//! everything it is made from.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// `$XDG_CACHE_HOME/podvisor` or `~/.cache/podvisor`; created when missing.
///
/// # Errors
/// There is no home folder, or the folder cannot be created.
pub fn folder() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(path) => PathBuf::from(path),
        None => std::env::home_dir()
            .context("no home folder to keep a cache in")?
            .join(".cache"),
    };
    let folder = base.join("podvisor");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

/// A hash of the inputs of a build.
pub struct Key(Sha256);

impl Key {
    /// A key that depends on nothing yet.
    pub fn new() -> Self {
        Self(Sha256::new())
    }

    /// Makes the key depend on a text. Lengths are hashed too, so neighbouring texts cannot merge.
    pub fn text(mut self, text: &str) -> Self {
        self.0.update((text.len() as u64).to_le_bytes());
        self.0.update(text);
        self
    }

    /// Makes the key depend on a file's content.
    ///
    /// # Errors
    /// The file cannot be read as text.
    pub fn file(self, path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(self.text(&text))
    }

    fn hex(self) -> String {
        let mut hex = hex::encode(self.0.finalize());
        hex.truncate(16);
        hex
    }
}

/// Returns the cached folder `NAME-HASH`, built first by `build` in a folder of its own when it is missing. Only one
/// process builds a name at a time, and a folder that exists is complete.
///
/// # Errors
/// The cache cannot be written, or `build` fails.
pub fn get_or_build(
    name: &str,
    key: Key,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let cache = folder()?;
    let wanted = cache.join(format!("{name}-{}", key.hex()));
    let lock = File::create(cache.join(format!("{name}.lock")))?;
    lock.lock()?;
    if !wanted.exists() {
        let temporary = tempfile::Builder::new()
            .prefix(&format!("{name}-build."))
            .tempdir_in(&cache)?;
        build(temporary.path())?;
        fs::rename(temporary.keep(), &wanted)?;
    }
    Ok(wanted)
}
