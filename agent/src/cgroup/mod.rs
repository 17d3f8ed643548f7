//! The guest's cgroup tree (version 2): the agent in a protected leaf, every
//! container in a leaf of its own under `/pod`.

mod devices;
mod limits;
mod stats;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use self::devices::DeviceProgram;
use crate::oci::Resources;

/// Where the unified hierarchy is mounted.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// The agent's own leaf.
const AGENT_LEAF: &str = "podvisor-agent";
/// Parent of all containers.
const POD: &str = "pod";
/// What the kernel must not reclaim from the agent, in bytes: its budget, twice.
const AGENT_PROTECTED_BYTES: u64 = 6 << 20;
/// Longest cgroup name made from a container id (NAME_MAX).
const NAME_MAX: usize = 255;
/// How long a removed cgroup may stay busy with exiting tasks.
const REMOVE_ATTEMPTS: u32 = 12;

/// Why the cgroup tree did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A cgroup file could not be read or written.
    #[error("cgroup file {file}")]
    File {
        /// Path of the file.
        file: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The device program was refused.
    #[error("device rules of cgroup {path}")]
    Devices {
        /// Path of the cgroup.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A process is in a cgroup somewhere else.
    #[error("process {pid} is in {found}, which is not within cgroup {path}")]
    Outside {
        /// Its pid in the guest.
        pid: u32,
        /// Its cgroup, as /proc has it.
        found: String,
        /// The cgroup it was to be in.
        path: String,
    },
    /// The cgroup did not freeze in time.
    #[error("cgroup {0} did not freeze")]
    NotFrozen(String),
}

/// Makes the tree: moves the calling process into the agent's leaf and
/// delegates every controller to containers.
///
/// # Errors
///
/// [`CgroupError::File`] with the file.
pub fn build_tree() -> Result<(), CgroupError> {
    let root = Cgroup::at(PathBuf::from(CGROUP_ROOT));
    let agent = Cgroup::at(root.path.join(AGENT_LEAF));
    agent.make()?;
    agent.write("cgroup.procs", "0")?;
    let available = root.read("cgroup.controllers")?;
    let enable: String = available
        .split_whitespace()
        .map(|name| format!("+{name} "))
        .collect();
    root.write("cgroup.subtree_control", &enable)?;
    agent.write("memory.min", &AGENT_PROTECTED_BYTES.to_string())?;
    let pod = pod();
    pod.make()?;
    pod.write("cgroup.subtree_control", &enable)
}

/// The parent of all containers.
#[must_use]
pub fn pod() -> Cgroup {
    Cgroup::at(Path::new(CGROUP_ROOT).join(POD))
}

/// One cgroup, by path. Dropping it leaves the cgroup in place.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
    /// Its device rules in force.
    devices: Arc<DeviceProgram>,
}

impl Cgroup {
    /// The cgroup of a directory.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self {
            path,
            devices: Arc::default(),
        }
    }

    /// Makes the cgroup of a container with its limits in force.
    ///
    /// # Errors
    ///
    /// [`CgroupError`] with the file; the cgroup is removed again.
    pub fn create(container_id: &str, resources: &Resources) -> Result<Self, CgroupError> {
        let cgroup = Self::at(pod().path.join(leaf_name(container_id)));
        cgroup.make()?;
        let limited = cgroup
            .apply(resources)
            .and_then(|()| cgroup.attach_devices(resources));
        if let Err(error) = limited {
            // Nothing ran in it yet, so one attempt is enough.
            let _ = fs::remove_dir(&cgroup.path);
            return Err(error);
        }
        Ok(cgroup)
    }

    /// Changes the limits that `resources` names.
    ///
    /// # Errors
    ///
    /// [`CgroupError`] with the file; limits written before it stay.
    pub fn update(&self, resources: &Resources) -> Result<(), CgroupError> {
        self.apply(resources)?;
        if resources.devices.is_empty() {
            return Ok(());
        }
        self.attach_devices(resources)
    }

    /// Opens the cgroup's directory, as clone3's CLONE_INTO_CGROUP wants it.
    ///
    /// # Errors
    ///
    /// [`CgroupError::File`].
    pub fn open(&self) -> Result<OwnedFd, CgroupError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&self.path, flags, Mode::empty())
            .map_err(|errno| self.error("", errno.into()))
    }

    /// The cgroup that a process is in, which is this one or below it.
    ///
    /// # Errors
    ///
    /// [`CgroupError::File`] when that cannot be read, [`CgroupError::Outside`].
    pub fn of_process(&self, pid: u32) -> Result<Self, CgroupError> {
        let file = format!("/proc/{pid}/cgroup");
        let membership = fs::read_to_string(&file);
        let membership = membership.map_err(|source| CgroupError::File { file, source })?;
        let found = self.within(&membership);
        found.map(Self::at).ok_or_else(|| CgroupError::Outside {
            pid,
            found: membership.trim_end().to_owned(),
            path: self.path.display().to_string(),
        })
    }

    /// The directory that a process's membership (cgroups(7), /proc/PID/cgroup) names, when that
    /// lies in this one.
    fn within(&self, membership: &str) -> Option<PathBuf> {
        let mut lines = membership.lines();
        let name = lines.find_map(|line| line.strip_prefix("0::/"))?;
        let path = Path::new(CGROUP_ROOT).join(name);
        let mut parts = path.components();
        let is_within =
            path.starts_with(&self.path) && !parts.any(|part| part == Component::ParentDir);
        is_within.then_some(path)
    }

    /// Path of one of its files.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Every process in it and below, as guest pids.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        for directory in self.subtree() {
            // A cgroup that vanished meanwhile has no processes.
            let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        }
        pids
    }

    /// Kills every process in it and below, also while frozen.
    ///
    /// # Errors
    ///
    /// [`CgroupError::File`].
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", "1")
    }

    /// Stops every process in it and waits until they are stopped.
    ///
    /// # Errors
    ///
    /// [`CgroupError::NotFrozen`] when that takes longer than two seconds; the
    /// cgroup is thawed again.
    pub async fn freeze(&self) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", "1")?;
        for _ in 0..200_u32 {
            let frozen = self
                .read("cgroup.events")?
                .lines()
                .any(|line| line == "frozen 1");
            if frozen {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.thaw()?;
        Err(CgroupError::NotFrozen(self.path.display().to_string()))
    }

    /// Lets its processes run again.
    ///
    /// # Errors
    ///
    /// [`CgroupError::File`].
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", "0")
    }

    /// How many of its processes the kernel killed for want of memory.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let events = fs::read_to_string(self.file("memory.events")).unwrap_or_default();
        stats::value_of(&events, "oom_kill")
    }

    /// Removes it with everything below, waiting for exiting tasks.
    ///
    /// # Errors
    ///
    /// [`CgroupError::File`] when it is still busy after about four seconds.
    pub async fn remove(&self) -> Result<(), CgroupError> {
        let mut pause = Duration::from_millis(1);
        for _ in 0..REMOVE_ATTEMPTS {
            match self.try_remove() {
                Ok(()) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(error) => return Err(self.error("", error)),
            }
        }
        self.try_remove().map_err(|error| self.error("", error))
    }

    fn try_remove(&self) -> io::Result<()> {
        for directory in self.subtree().iter().rev() {
            match fs::remove_dir(directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// This cgroup and all below, parents before children.
    fn subtree(&self) -> Vec<PathBuf> {
        let mut found = vec![self.path.clone()];
        let mut next = 0;
        while let Some(directory) = found.get(next) {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            let children =
                entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            let children: Vec<PathBuf> = children.map(|entry| entry.path()).collect();
            found.extend(children);
            next += 1;
        }
        found
    }

    fn make(&self) -> Result<(), CgroupError> {
        match fs::create_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(self.error("", error))
            }
            _ => Ok(()),
        }
    }

    fn apply(&self, resources: &Resources) -> Result<(), CgroupError> {
        for limit in limits::writes(resources) {
            match self.write(&limit.file, &limit.value) {
                Err(CgroupError::File { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && limit.is_met_by_absence() => {}
                written => written?,
            }
        }
        Ok(())
    }

    fn attach_devices(&self, resources: &Resources) -> Result<(), CgroupError> {
        let directory = self.open_for_bpf()?;
        let attached = self.devices.attach(&directory, &resources.devices);
        attached.map_err(|source| CgroupError::Devices {
            path: self.path.display().to_string(),
            source,
        })
    }

    fn open_for_bpf(&self) -> Result<OwnedFd, CgroupError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&self.path, flags, Mode::empty())
            .map_err(|errno| self.error("", errno.into()))
    }

    fn read(&self, name: &str) -> Result<String, CgroupError> {
        fs::read_to_string(self.file(name)).map_err(|source| self.error(name, source))
    }

    fn write(&self, name: &str, value: &str) -> Result<(), CgroupError> {
        // A cgroup file is never created by writing to it.
        let mut options = fs::OpenOptions::new();
        options.write(true);
        let written = options
            .open(self.file(name))
            .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
        written.map_err(|source| self.error(name, source))
    }

    fn error(&self, name: &str, source: io::Error) -> CgroupError {
        CgroupError::File {
            file: self.file(name).display().to_string(),
            source,
        }
    }
}

/// A directory name for a container id: the id itself when it is one path
/// component of harmless characters, which containerd's ids are.
fn leaf_name(container_id: &str) -> String {
    let mut name: String = container_id
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    name.truncate(NAME_MAX);
    // A cgroup file name must not be taken, nor "." and "..".
    if name.starts_with('.') || name.contains('.') || name.is_empty() {
        name.insert(0, '_');
        name.truncate(NAME_MAX);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerd_ids_keep_their_name() {
        let id = "0f3c9d1b7a5e";
        assert_eq!(leaf_name(id), id);
    }

    #[test]
    fn names_never_leave_the_directory_nor_hit_a_control_file() {
        assert_eq!(leaf_name("../x"), "_.._x");
        assert_eq!(leaf_name(".."), "_..");
        assert_eq!(leaf_name("cgroup.procs"), "_cgroup.procs");
        assert_eq!(leaf_name(""), "_");
        assert_eq!(leaf_name(&"x".repeat(300)).len(), NAME_MAX);
    }

    #[test]
    fn a_process_is_looked_for_in_its_containers_cgroup_only() {
        let cgroup = Cgroup::at(pod().path.join("web"));
        let within = |membership: &str| cgroup.within(membership);
        let own = "/sys/fs/cgroup/pod/web";
        assert_eq!(within("0::/pod/web\n").unwrap(), Path::new(own));
        let inner = within("1:name=x:/y\n0::/pod/web/init.scope\n").unwrap();
        assert_eq!(inner, Path::new(own).join("init.scope"));
        for outside in [
            "",
            "0::/",
            "0::/pod",
            "0::/pod/web2",
            "0::/podvisor-agent",
            "0::/pod/web/../db",
            "0:://pod/web",
        ] {
            assert_eq!(within(outside), None, "{outside:?}");
        }
    }

    #[test]
    fn a_subtree_lists_parents_before_children() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("a/b")).unwrap();
        let cgroup = Cgroup::at(directory.path().to_path_buf());
        let found = cgroup.subtree();
        assert_eq!(found.len(), 3);
        assert!(found[2].ends_with("a/b"));
        cgroup.try_remove().unwrap();
        assert!(!directory.path().exists());
    }
}
