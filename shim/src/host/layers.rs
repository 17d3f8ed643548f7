//! An overlay's lower layers with other owners than their file systems say: each is mounted once
//! more beside the overlay's place, with the owners that a pod's users are.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::owners::change_owners;
use crate::pod::users::UserMaps;

/// The folder of the layers, beside the overlay's.
const FOLDER: &str = "layers";
/// How an overlay's data names its lower layers.
const LOWER: &str = "lowerdir=";

/// Mounts of layers, for as long as this lives.
pub(super) struct Layers {
    folder: PathBuf,
    mounted: Vec<PathBuf>,
}

impl Layers {
    /// Mounts the lower layers that an overlay's data names, and names these in their place.
    ///
    /// # Errors
    /// Unsupported for what has no lower layers; else what the host said.
    pub(super) fn mount(
        data: &mut [String],
        owners: &UserMaps,
        overlay: &Path,
    ) -> io::Result<Self> {
        let lower = data.iter_mut().find(|option| option.starts_with(LOWER));
        let lower = lower.ok_or(io::ErrorKind::Unsupported)?;
        let folder = overlay.with_file_name(FOLDER);
        let mut layers = Self {
            folder,
            mounted: Vec::new(),
        };
        let sources = lower.strip_prefix(LOWER).unwrap_or_default().to_owned();
        for (number, source) in sources.split(':').enumerate() {
            layers.mount_one(number, Path::new(source), owners)?;
        }
        let names: Option<Vec<&str>> = layers.mounted.iter().map(|path| path.to_str()).collect();
        let names = names.ok_or(io::ErrorKind::InvalidFilename)?;
        *lower = format!("{LOWER}{}", names.join(":"));
        Ok(layers)
    }

    fn mount_one(&mut self, number: usize, source: &Path, owners: &UserMaps) -> io::Result<()> {
        let copy = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, source, copy)?;
        change_owners(tree.as_fd(), owners)?;
        let place = self.folder.join(number.to_string());
        fs::create_dir_all(&place)?;
        self.mounted.push(place.clone());
        move_mount(
            tree.as_fd(),
            "",
            CWD,
            &place,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )?;
        Ok(())
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        for place in &self.mounted {
            // One that was not mounted is only a folder.
            let _ = umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
            let _ = fs::remove_dir(place);
        }
        // The bundle goes with the container, whatever stays in it.
        let _ = fs::remove_dir(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_layers_is_refused() {
        let owners = UserMaps::of_options("0:1000:10", "0:1000:10").unwrap();
        let mounted = Layers::mount(&mut [], &owners, Path::new("/nowhere/rootfs"));
        assert_eq!(
            mounted.err().map(|e| e.kind()),
            Some(io::ErrorKind::Unsupported)
        );
    }
}
