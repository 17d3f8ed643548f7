//! The guest's initial image: the agent as `/init`, and the console that the kernel opens for it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cpio::Archive;

/// Writes the initial image with `agent` as its first program.
///
/// # Errors
/// The agent cannot be read or the image not be written.
pub fn write(agent: &Path, image: &Path) -> Result<()> {
    let agent =
        fs::read(agent).with_context(|| format!("cannot read the agent {}", agent.display()))?;
    let mut archive = Archive::new();
    archive.directory("dev", 0o755)?;
    // /dev/console of a kernel: Documentation/admin-guide/devices.txt.
    archive.character_device("dev/console", 0o600, (5, 1))?;
    archive.file("init", 0o755, &agent)?;
    fs::write(image, archive.finish()?).with_context(|| format!("cannot write {}", image.display()))
}
