//! The pod's control group, made as the kubelet makes it with the cgroupfs driver.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::translate::{PodLimits, Qos};

const ROOT: &str = "/sys/fs/cgroup";
/// Controllers that pods need, where the machine has them.
const CONTROLLERS: [&str; 6] = ["cpu", "memory", "pids", "cpuset", "io", "hugetlb"];
/// A group stays busy for a moment after its last process has gone.
const REMOVE_TRIES: u32 = 40;
const REMOVE_PAUSE: Duration = Duration::from_millis(50);

/// A pod's control group: `kubepods[/CLASS]/podUID`.
#[derive(Clone, Debug)]
pub struct PodCgroup {
    /// Relative to the root of the hierarchy.
    path: PathBuf,
}

impl PodCgroup {
    /// The group of a pod.
    pub fn of(uid: &str, qos: Qos) -> Self {
        let level = match qos {
            Qos::Guaranteed => "kubepods",
            Qos::Burstable => "kubepods/burstable",
            Qos::BestEffort => "kubepods/besteffort",
        };
        Self {
            path: Path::new(level).join(format!("pod{uid}")),
        }
    }

    /// The groups that a pod with this id may have.
    pub fn all_of(uid: &str) -> [Self; 3] {
        [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort].map(|qos| Self::of(uid, qos))
    }

    /// As CRI's `cgroup_parent` names it.
    pub fn parent(&self) -> String {
        format!("/{}", self.path.display())
    }

    /// Makes the group and sets its limits.
    pub fn create(&self, limits: PodLimits) -> Result<()> {
        let unified = Path::new(ROOT).join("cgroup.controllers").exists();
        ensure!(
            unified,
            "{ROOT} is not a control group hierarchy of version 2"
        );
        let mut folder = PathBuf::from(ROOT);
        for component in self.path.components() {
            hand_down_controllers(&folder)?;
            folder.push(component);
            match fs::create_dir(&folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(error).with_context(|| format!("cannot make {}", folder.display()));
                }
                _ => {}
            }
        }
        hand_down_controllers(&folder)?;
        set(&folder, "cpu.weight", &limits.cpu_weight.to_string())?;
        if let Some((quota, period)) = limits.cpu_max {
            set(&folder, "cpu.max", &format!("{quota} {period}"))?;
        }
        if let Some(bytes) = limits.memory_max {
            set(&folder, "memory.max", &bytes.to_string())?;
        }
        Ok(())
    }

    /// Removes the group with what is left in it, and the levels above it when they are empty.
    pub fn remove(&self) -> Result<()> {
        let folder = Path::new(ROOT).join(&self.path);
        if folder.exists() {
            remove_tree(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        for level in self
            .path
            .ancestors()
            .skip(1)
            .filter(|level| *level != Path::new(""))
        {
            // Other pods may be below it.
            let _ = fs::remove_dir(Path::new(ROOT).join(level));
        }
        Ok(())
    }
}

/// Lets the groups below `folder` use its controllers.
fn hand_down_controllers(folder: &Path) -> Result<()> {
    let file = folder.join("cgroup.controllers");
    let available =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let words: Vec<_> = available
        .split_whitespace()
        .filter(|name| CONTROLLERS.contains(name))
        .map(|name| format!("+{name}"))
        .collect();
    set(folder, "cgroup.subtree_control", &words.join(" "))
}

fn set(folder: &Path, file: &str, value: &str) -> Result<()> {
    let path = folder.join(file);
    fs::write(&path, value).with_context(|| format!("cannot write {value:?} to {}", path.display()))
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    let mut tries = 0;
    loop {
        match fs::remove_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < REMOVE_TRIES => {
                tries += 1;
                thread::sleep(REMOVE_PAUSE);
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_named_as_by_the_kubelet() {
        assert_eq!(
            PodCgroup::of("1", Qos::Guaranteed).parent(),
            "/kubepods/pod1"
        );
        assert_eq!(
            PodCgroup::of("1", Qos::BestEffort).parent(),
            "/kubepods/besteffort/pod1"
        );
    }
}
