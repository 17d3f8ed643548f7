//! Where things are in this repository, and what cargo says about it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// The workspace's version, which names releases.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// This crate's own folder: where cargo runs us from, which the folder that we were compiled in need not be when a `target`
/// folder was copied to another working tree.
fn xtask() -> &'static Path {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        let compiled_in = || env!("CARGO_MANIFEST_DIR").into();
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(compiled_in, PathBuf::from)
    });
    &FOLDER
}

/// The repository's root folder.
pub fn root() -> &'static Path {
    xtask().parent().unwrap_or(xtask())
}

/// A file of this crate's own folder.
pub fn xtask_file(name: &str) -> PathBuf {
    xtask().join(name)
}

/// The folder that cargo builds into.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(path) => root().join(path),
        None => root().join("target"),
    }
}

/// A cargo command in the workspace: the cargo that runs us, without what it set for us alone.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    for (name, _) in std::env::vars_os() {
        let is_ours = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        });
        if is_ours {
            command.env_remove(name);
        }
    }
    command
}
