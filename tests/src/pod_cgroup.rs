//! Cgroups of pods, as the kubelet makes them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The folder of every test pod's cgroup, as the kubelet's cgroup root.
const CGROUP_ROOT: &str = "/sys/fs/cgroup/kubepods";

/// A pod's cgroup below the kubelet's root, removed when dropped.
pub(crate) struct PodCgroup {
    name: String,
}

impl PodCgroup {
    pub(crate) fn create(name: &str, memory_max: i64) -> Result<Self> {
        let path = Path::new(CGROUP_ROOT).join(name);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        let controllers = "+cpu +memory +pids +io +cpuset";
        for folder in [Path::new("/sys/fs/cgroup"), Path::new(CGROUP_ROOT), &path] {
            let file = folder.join("cgroup.subtree_control");
            fs::write(&file, controllers).with_context(|| format!("write {}", file.display()))?;
        }
        let cgroup = Self { name: name.into() };
        cgroup.set_memory_max(memory_max)?;
        Ok(cgroup)
    }

    pub(crate) fn set_memory_max(&self, bytes: i64) -> Result<()> {
        let path = self.path().join("memory.max");
        fs::write(&path, bytes.to_string()).with_context(|| format!("write {}", path.display()))
    }

    fn path(&self) -> PathBuf {
        Path::new(CGROUP_ROOT).join(&self.name)
    }

    pub(crate) fn parent(&self) -> String {
        format!("/kubepods/{}", self.name)
    }
}

impl Drop for PodCgroup {
    fn drop(&mut self) {
        let path = self.path();
        if let Err(error) = fs::remove_dir(&path) {
            eprintln!("{} is not removed: {error}", path.display());
        }
    }
}
