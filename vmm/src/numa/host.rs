//! The host's nodes, as sysfs tells them
//! (Documentation/ABI/stable/sysfs-devices-node).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Where the nodes are.
const SYSFS: &str = "/sys/devices/system/node";

/// A node of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostNode {
    /// Its number.
    pub id: u32,
    /// Its processors.
    pub cpus: Vec<usize>,
    /// How far it is to each node, in the order of their numbers.
    pub distances: Vec<u8>,
}

/// Why the host's nodes are not known.
#[derive(Debug, Error)]
pub enum HostNodesError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A file has another content than it should.
    #[error("{path} has '{content}'")]
    Content {
        /// The file.
        path: PathBuf,
        /// What it has.
        content: String,
    },
}

impl HostNode {
    /// All nodes of this host by number; none on one whose kernel knows no nodes.
    ///
    /// # Errors
    /// [`HostNodesError`] when sysfs cannot be read or understood.
    pub fn all() -> Result<Vec<Self>, HostNodesError> {
        Self::all_in(Path::new(SYSFS))
    }

    fn all_in(folder: &Path) -> Result<Vec<Self>, HostNodesError> {
        let failed = |source| HostNodesError::Read {
            path: folder.to_owned(),
            source,
        };
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut nodes = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.strip_prefix("node"));
            if let Some(id) = id.and_then(|id| id.parse().ok()) {
                nodes.push(Self {
                    id,
                    cpus: read(&entry.path().join("cpulist"), cpu_list)?,
                    distances: read(&entry.path().join("distance"), distances)?,
                });
            }
        }
        nodes.sort_by_key(|node| node.id);
        Ok(nodes)
    }
}

fn read<T>(path: &Path, parse: fn(&str) -> Option<T>) -> Result<T, HostNodesError> {
    let content = fs::read_to_string(path).map_err(|source| HostNodesError::Read {
        path: path.to_owned(),
        source,
    })?;
    let content = content.trim();
    parse(content).ok_or_else(|| HostNodesError::Content {
        path: path.to_owned(),
        content: content.to_owned(),
    })
}

fn distances(text: &str) -> Option<Vec<u8>> {
    text.split_whitespace()
        .map(|word| word.parse().ok())
        .collect()
}

/// More processors than any host has; a list beyond is nonsense.
const MAX_CPUS: usize = 1 << 16;

/// Reads a list such as `0-3,8,10-11`.
pub(super) fn cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= MAX_CPUS {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_read_in_the_order_of_their_numbers() {
        let folder = tempfile::tempdir().unwrap();
        for (name, cpus, distance) in [
            ("node10", "8-9,11\n", "21 10\n"),
            ("node2", "0-3\n", "10 21\n"),
        ] {
            let node = folder.path().join(name);
            fs::create_dir(&node).unwrap();
            fs::write(node.join("cpulist"), cpus).unwrap();
            fs::write(node.join("distance"), distance).unwrap();
        }
        fs::write(folder.path().join("possible"), "2,10\n").unwrap();
        let nodes = HostNode::all_in(folder.path()).unwrap();
        let expected = [
            HostNode {
                id: 2,
                cpus: vec![0, 1, 2, 3],
                distances: vec![10, 21],
            },
            HostNode {
                id: 10,
                cpus: vec![8, 9, 11],
                distances: vec![21, 10],
            },
        ];
        assert_eq!(nodes, expected);
    }

    #[test]
    fn a_host_without_nodes_has_none_and_nonsense_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        assert_eq!(HostNode::all_in(&missing).unwrap(), []);
        let node = folder.path().join("node0");
        fs::create_dir(&node).unwrap();
        fs::write(node.join("cpulist"), "3-1\n").unwrap();
        let error = HostNode::all_in(folder.path()).unwrap_err().to_string();
        assert!(error.ends_with("node0/cpulist has '3-1'"), "{error}");
    }

    #[test]
    fn lists_have_single_processors_and_ranges() {
        assert_eq!(cpu_list("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(cpu_list(""), Some(Vec::new()));
        for text in ["a", "1-", "2-1", "0-65536", "0-18446744073709551615"] {
            assert_eq!(cpu_list(text), None, "{text}");
        }
    }
}
