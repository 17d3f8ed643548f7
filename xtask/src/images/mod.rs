//! The container images that the node's registry serves, as images.toml describes them.

mod layout;
pub mod machine;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::cache::{self, Key};
use crate::progress::Step;
use crate::{packages, workspace};

#[derive(Deserialize)]
struct Description {
    image: Vec<Image>,
}

/// One entry of images.toml.
#[derive(Deserialize)]
struct Image {
    /// Folder of the layout.
    folder: String,
    /// Full names with host and tag.
    names: Vec<String>,
    tree: tree::Tree,
    /// What runs unless the pod says otherwise.
    command: Vec<String>,
}

/// `cargo xtask images …`
#[derive(clap::Args)]
pub struct ImagesArgs {
    /// The machines that machine pods boot, instead of what containers run.
    #[arg(long)]
    machines: bool,
}

impl ImagesArgs {
    /// Builds the images and returns the folder that holds a layout of each.
    ///
    /// # Errors
    /// Packages are missing, or cannot be fetched.
    pub fn build(&self) -> Result<PathBuf> {
        packages::install()?;
        if self.machines {
            machine::build()
        } else {
            build()
        }
    }
}

/// Builds the images of containers, unless they are cached, and returns the folder that holds a layout of each.
///
/// # Errors
/// images.toml is not as described, or Debian's packages cannot be fetched.
pub fn build() -> Result<PathBuf> {
    let description = workspace::xtask_file("images.toml");
    let key = Key::new()
        .file(&description)?
        .file(&workspace::xtask_file("src/images/tree.rs"))?
        .file(&workspace::xtask_file("src/images/layout.rs"))?;
    cache::get_or_build("images", key, |folder| {
        let text = fs::read_to_string(&description)?;
        let description: Description =
            toml::from_str(&text).context("images.toml is not as described")?;
        description
            .image
            .iter()
            .try_for_each(|image| build_image(folder, image))
    })
}

fn build_image(folder: &Path, image: &Image) -> Result<()> {
    let step = Step::start(format!("container image {}", image.folder));
    let layer = tempfile::NamedTempFile::new_in(folder)?;
    image.tree.write(&step, layer.path())?;
    layout::write(
        &folder.join(&image.folder),
        layer.path(),
        &image.names,
        &image.command,
    )?;
    step.done();
    Ok(())
}
