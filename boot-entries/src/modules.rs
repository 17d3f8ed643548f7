//! Which modules of a kernel have to be loaded, in which order (modules.dep(5)).

use std::collections::{BTreeMap, BTreeSet};

/// Most modules that one has below it.
const MAX_MODULES: usize = 256;

/// Why a module cannot be loaded.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ModulesError {
    /// The kernel has it neither built in nor as a file.
    #[error("the kernel has no module {0}")]
    Missing(String),
    /// A bound.
    #[error("module {0} depends on more than {MAX_MODULES} others")]
    TooMany(String),
}

/// The modules of a kernel.
#[derive(Debug, Default)]
pub struct Modules {
    /// Path and dependencies by name.
    files: BTreeMap<String, (String, Vec<String>)>,
    built_in: BTreeSet<String>,
}

impl Modules {
    /// Parses `modules.dep` and `modules.builtin`.
    #[must_use]
    pub fn parse(dependencies: &str, built_in: &str) -> Self {
        let files = dependencies.lines().filter_map(|line| {
            let (path, needed) = line.split_once(':')?;
            let needed = needed.split_whitespace().map(str::to_owned).collect();
            Some((name_of(path), (path.trim().to_owned(), needed)))
        });
        Self {
            files: files.collect(),
            built_in: built_in.lines().map(name_of).collect(),
        }
    }

    /// The files to load for `name`, in order; none when it is built in.
    ///
    /// # Errors
    ///
    /// [`ModulesError`].
    pub fn order(&self, name: &str) -> Result<Vec<String>, ModulesError> {
        let name = name_of(name);
        if self.built_in.contains(&name) {
            return Ok(Vec::new());
        }
        let Some((path, needed)) = self.files.get(&name) else {
            return Err(ModulesError::Missing(name));
        };
        if needed.len() > MAX_MODULES {
            return Err(ModulesError::TooMany(name));
        }
        // modules.dep lists all that is needed, what is needed last at the end first.
        let mut order: Vec<String> = needed.iter().rev().cloned().collect();
        order.push(path.clone());
        Ok(order)
    }
}

/// A module's name: of its file without suffixes, dashes as underscores.
fn name_of(path: &str) -> String {
    let file = path.trim().rsplit('/').next().unwrap_or_default();
    let name = file.split('.').next().unwrap_or_default();
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "kernel/fs/fuse/virtiofs.ko.xz: kernel/fs/fuse/fuse.ko.xz kernel/virtio.ko.xz\n\
        kernel/fs/fuse/fuse.ko.xz:\ndm-mod.ko:\n";

    #[test]
    fn what_is_needed_is_loaded_before() {
        let modules = Modules::parse(DEPENDENCIES, "kernel/drivers/virtio/virtio_pci.ko\n");
        let order = modules.order("virtiofs").unwrap();
        let expected = [
            "kernel/virtio.ko.xz",
            "kernel/fs/fuse/fuse.ko.xz",
            "kernel/fs/fuse/virtiofs.ko.xz",
        ];
        assert_eq!(order, expected);
        assert_eq!(modules.order("dm_mod").unwrap(), ["dm-mod.ko"]);
        assert!(modules.order("virtio-pci").unwrap().is_empty());
        let missing = ModulesError::Missing("zfs".to_owned());
        assert_eq!(modules.order("zfs"), Err(missing));
    }
}
