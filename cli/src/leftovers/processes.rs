//! Processes and their namespaces.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{LeftoversError, links, names_a_pod};

/// Shims, and processes in control groups of pods.
pub(super) fn of_pods() -> Result<usize, LeftoversError> {
    let belongs = |process: &PathBuf| {
        // A process that ends meanwhile has neither file.
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        let cgroup = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        name.starts_with("containerd-shim") || names_a_pod(&cgroup)
    };
    Ok(processes()?
        .iter()
        .filter(|process| belongs(process))
        .count())
}

/// Network namespaces that a process is in or a file names.
pub(super) fn network_namespaces() -> Result<usize, LeftoversError> {
    let of_processes = processes()?
        .into_iter()
        .map(|process| process.join("ns/net"));
    let named = links::named_namespaces()?;
    let inodes: BTreeSet<u64> = of_processes
        .chain(named)
        .filter_map(|file| Some(fs::metadata(file).ok()?.ino()))
        .collect();
    Ok(inodes.len())
}

/// The folders of all processes.
fn processes() -> Result<Vec<PathBuf>, LeftoversError> {
    let proc = Path::new("/proc");
    let entries = fs::read_dir(proc).map_err(LeftoversError::read(proc))?;
    let is_process = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
    };
    Ok(entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(is_process)
        .collect())
}
