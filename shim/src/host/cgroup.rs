//! The leaf of the cgroup tree (version 2) in which a pod's server lives, so that guest memory is
//! accounted to the pod.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::pod::cgroup_path::ROOT;

/// How long a leaf may still be busy with processes that end.
const REMOVE_WAIT: Duration = Duration::from_secs(2);
const REMOVE_PAUSE: Duration = Duration::from_millis(20);

/// Why the server is not in its leaf.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// The host has no unified tree.
    #[error("{ROOT} is no cgroup v2 tree, which VM pods need")]
    NotUnified,
    /// A group cannot be made, entered or removed.
    #[error("cannot {action} cgroup {path}")]
    Group {
        /// What was tried.
        action: &'static str,
        /// The group.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// Makes the group `leaf` (relative to the root) with its parents and moves this process there.
/// Yields the groups that were made, innermost first.
///
/// # Errors
/// [`CgroupError`].
pub fn join(leaf: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let root = Path::new(ROOT);
    if !root.join("cgroup.controllers").exists() {
        return Err(CgroupError::NotUnified);
    }
    let path = root.join(leaf);
    let failed = |action| {
        let path = path.clone();
        move |source| CgroupError::Group {
            action,
            path,
            source,
        }
    };
    let missing = path.ancestors().take_while(|group| !group.exists());
    let made: Vec<PathBuf> = missing.map(Path::to_owned).collect();
    fs::create_dir_all(&path).map_err(failed("make"))?;
    fs::write(path.join("cgroup.procs"), "0").map_err(failed("enter"))?;
    Ok(made)
}

/// Keeps the processes of the group `leaf` (relative to the root) on `cpus`, a list such as
/// `0-2,5`; on all when it is empty.
///
/// # Errors
/// [`CgroupError::Group`], also when the group does not have the `cpuset` controller.
pub fn confine(leaf: &Path, cpus: &str) -> Result<(), CgroupError> {
    let path = Path::new(ROOT).join(leaf);
    let file = path.join("cpuset.cpus");
    let written = match (cpus, path.parent()) {
        // Not every kernel lets a group with processes name none (`validate_change` in
        // kernel/cgroup/cpuset.c): it names all that it may have.
        ("", Some(above)) => fs::read_to_string(above.join("cpuset.cpus.effective"))
            .and_then(|all| fs::write(&file, all)),
        _ => fs::write(&file, format!("{cpus}\n")),
    };
    written.map_err(|source| CgroupError::Group {
        action: "choose the CPUs of",
        path,
        source,
    })
}

/// The smallest `memory.max`, in bytes, of the groups above `leaf` (relative to the root).
pub fn memory_max(leaf: &Path) -> Option<u64> {
    smallest_limit(Path::new(ROOT), leaf, "memory.max")
}

/// How many bytes the groups above `leaf` may have of the node's pool of huge pages of `page_len` bytes.
pub fn huge_pages_max(leaf: &Path, page_len: u64) -> Option<u64> {
    // As the kernel writes sizes (mm/hugetlb_cgroup.c, mem_fmt).
    let size = match page_len >> 20 {
        mib @ ..1024 => format!("{mib}MB"),
        mib => format!("{}GB", mib >> 10),
    };
    smallest_limit(Path::new(ROOT), leaf, &format!("hugetlb.{size}.max"))
}

fn smallest_limit(root: &Path, leaf: &Path, file: &str) -> Option<u64> {
    let groups = leaf
        .ancestors()
        .skip(1)
        .filter(|group| !group.as_os_str().is_empty());
    let limits = groups.filter_map(|group| {
        let text = fs::read_to_string(root.join(group).join(file)).ok()?;
        text.trim().parse::<u64>().ok()
    });
    limits.min()
}

/// Removes groups, waiting a little for processes in them to end. One that is gone, or that others
/// use, is no error but for the first.
///
/// # Errors
/// [`CgroupError::Group`] when the first one stays busy.
pub fn remove(made: &[PathBuf]) -> Result<(), CgroupError> {
    let Some((leaf, parents)) = made.split_first() else {
        return Ok(());
    };
    let deadline = Instant::now() + REMOVE_WAIT;
    loop {
        match fs::remove_dir(leaf) {
            Ok(()) => break,
            Err(e) if e.kind() == io::ErrorKind::NotFound => break,
            Err(source) if Instant::now() > deadline => {
                return Err(CgroupError::Group {
                    action: "remove",
                    path: leaf.clone(),
                    source,
                });
            }
            Err(_) => std::thread::sleep(REMOVE_PAUSE),
        }
    }
    for parent in parents {
        if fs::remove_dir(parent).is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_above_a_group_counts_and_not_its_own() {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().join("pods/pod");
        fs::create_dir_all(pod.join("leaf")).unwrap();
        let of_leaf = || smallest_limit(root.path(), Path::new("pods/pod/leaf"), "memory.max");
        assert_eq!(of_leaf(), None);
        fs::write(pod.join("leaf/memory.max"), "1\n").unwrap();
        fs::write(pod.join("memory.max"), "max\n").unwrap();
        fs::write(root.path().join("memory.max"), "2\n").unwrap();
        assert_eq!(of_leaf(), None, "none of a group above");
        fs::write(root.path().join("pods/memory.max"), "8192\n").unwrap();
        assert_eq!(of_leaf(), Some(8192));
        fs::write(pod.join("memory.max"), "4096\n").unwrap();
        assert_eq!(of_leaf(), Some(4096));
    }
}
