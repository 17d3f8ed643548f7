//! The guest's initial images: the agent as `/init`, and the console that the kernel opens for it; for the boot stage of machines
//! the kernel's modules as well.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cpio::Archive;

/// Writes the initial image with `agent` as its first program.
///
/// # Errors
/// The agent cannot be read or the image not be written.
pub fn write(agent: &Path, image: &Path) -> Result<()> {
    finish(with_agent(agent)?, image)
}

/// Writes the initial image of a boot stage: with all files of the folder `modules`.
///
/// # Errors
/// A file cannot be read or the image not be written.
pub fn write_for_machines(agent: &Path, modules: &Path, image: &Path) -> Result<()> {
    let mut archive = with_agent(agent)?;
    // The agent knows by this folder that it is a boot stage.
    archive.directory("modules", 0o755)?;
    let entries =
        fs::read_dir(modules).with_context(|| format!("cannot read {}", modules.display()))?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    // The same files give the same image.
    paths.sort();
    for path in paths {
        let name = path.file_name().context("a file without a name")?;
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        archive.file(
            &format!("modules/{}", name.to_string_lossy()),
            0o644,
            &content,
        )?;
    }
    finish(archive, image)
}

fn with_agent(agent: &Path) -> Result<Archive> {
    let agent =
        fs::read(agent).with_context(|| format!("cannot read the agent {}", agent.display()))?;
    let mut archive = Archive::new();
    archive.directory("dev", 0o755)?;
    // /dev/console of a kernel: Documentation/admin-guide/devices.txt.
    archive.character_device("dev/console", 0o600, (5, 1))?;
    archive.file("init", 0o755, &agent)?;
    Ok(archive)
}

fn finish(archive: Archive, image: &Path) -> Result<()> {
    fs::write(image, archive.finish()?).with_context(|| format!("cannot write {}", image.display()))
}
