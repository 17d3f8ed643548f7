//! The machines that machine pods of the tests boot, as container images.
//!
//! | image | holds |
//! |---|---|
//! | `docker.io/podvisor/debian-machine:13` | `/disk/debian.qcow2`: GPT, GRUB, ext4, systemd, cloud-init, sshd |
//! | `docker.io/podvisor/debian-tree:13` | the same machine as a tree |
//! | `docker.io/podvisor/busybox-machine:latest` | `/disk/busybox.qcow2`: DOS partitions, extlinux.conf, ext4, busybox |
//! | `docker.io/podvisor/busybox-machine:raw` | `/disk/busybox.raw`: the same disk, raw |
//! | `docker.io/podvisor/busybox-tree:latest` | the same machine as a tree |

mod busybox;
mod debian;
mod disk;
mod qcow2;

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::cache::{self, Key};
use crate::workspace;

/// Sources that decide what the images hold, beside the scripts.
const SOURCES: &[&str] = &[
    "src/cpio.rs",
    "src/images/layout.rs",
    "src/images/machine/busybox.rs",
    "src/images/machine/debian.rs",
    "src/images/machine/disk.rs",
    "src/images/machine/qcow2.rs",
    "src/node/debian.rs",
];

/// Builds the images, unless they are cached, and returns the folder that holds a layout of each.
///
/// # Errors
/// Debian's packages cannot be fetched, or a tool fails.
pub fn build() -> Result<PathBuf> {
    let mut key = Key::new();
    for source in SOURCES {
        key = key.file(&workspace::xtask_file(source))?;
    }
    for (_, hook) in debian::HOOKS {
        key = key.file(&workspace::xtask_file(hook))?;
    }
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(workspace::xtask_file(busybox::FOLDER))? {
        files.push(entry?.path());
    }
    files.sort();
    for file in files {
        key = key.file(&file)?;
    }
    cache::get_or_build("machines", key, |folder| {
        busybox::build(folder)?;
        debian::build(folder)
    })
}
