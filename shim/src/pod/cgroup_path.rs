//! Where a pod's server belongs in the cgroup tree: beside the pod's containers, in a leaf of its
//! own, for on cgroup v2 a group with controllers holds no processes.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Spec;
use thiserror::Error;

/// The root of the tree on every host.
pub const ROOT: &str = "/sys/fs/cgroup";

/// A `linux.cgroupsPath` that names no place.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("linux.cgroupsPath {0:?} is neither a path nor slice:prefix:name")]
pub struct CgroupPathError(String);

/// The leaf for the server of the pod `id` with this spec, relative to [`ROOT`]. A pod whose spec
/// names no group has one at the root.
///
/// # Errors
/// [`CgroupPathError`].
pub fn leaf_of(spec: &Spec, id: &str) -> Result<PathBuf, CgroupPathError> {
    let linux = spec.linux().as_ref();
    let named = linux.and_then(|linux| linux.cgroups_path().clone());
    let path = named.unwrap_or_else(|| PathBuf::from("/").join(id));
    leaf(&path.to_string_lossy(), id)
}

/// The leaf for the server of pod `id`, relative to [`ROOT`], next to what `cgroups_path` names:
/// `/kubepods/pod1/ID` (cgroupfs driver) or `kubepods-pod1.slice:cri-containerd:ID` (systemd
/// driver).
///
/// # Errors
/// [`CgroupPathError`].
fn leaf(cgroups_path: &str, id: &str) -> Result<PathBuf, CgroupPathError> {
    let invalid = || CgroupPathError(cgroups_path.to_owned());
    if let Some((slice, _)) = cgroups_path.split_once(':') {
        let parent = slice_path(slice).ok_or_else(invalid)?;
        return Ok(parent.join(format!("podvisor-{id}.scope")));
    }
    let path = Path::new(cgroups_path);
    let relative: PathBuf = path
        .components()
        .filter(|part| *part != Component::RootDir)
        .collect();
    let plain = relative
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    let parent = relative.parent().filter(|_| plain).ok_or_else(invalid)?;
    Ok(parent.join(format!("podvisor-{id}")))
}

/// The path of a slice: `a-b.slice` is `a.slice/a-b.slice` (systemd.slice(5)).
fn slice_path(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(".slice")?;
    if name == "-" {
        return Some(PathBuf::new());
    }
    let mut path = PathBuf::new();
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() || part.contains('/') || part.starts_with('.') {
            return None;
        }
        if !prefix.is_empty() {
            prefix.push('-');
        }
        prefix.push_str(part);
        path.push(format!("{prefix}.slice"));
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_leaf_lies_beside_the_container() {
        assert_eq!(
            leaf("/kubepods/burstable/pod1/abc", "abc").unwrap(),
            Path::new("kubepods/burstable/pod1/podvisor-abc")
        );
        assert_eq!(leaf("/abc", "abc").unwrap(), Path::new("podvisor-abc"));
    }

    #[test]
    fn a_systemd_slice_is_unfolded() {
        assert_eq!(
            leaf("kubepods-burstable-pod1.slice:cri-containerd:abc", "abc").unwrap(),
            Path::new(
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/podvisor-abc.scope"
            )
        );
    }

    #[test]
    fn what_leaves_the_tree_is_refused() {
        for wrong in [
            "/../etc/x",
            "/a/../../x",
            "a/./../b",
            "",
            "/",
            "a.service:b:c",
            "a--b.slice:b:c",
            "..-x.slice:b:c",
        ] {
            assert!(leaf(wrong, "abc").is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn a_leaf_never_leaves_the_tree(path in "[a-z./:-]{0,40}") {
            if let Ok(leaf) = leaf(&path, "id") {
                prop_assert!(leaf.components().all(|part| matches!(part, Component::Normal(_))));
            }
        }
    }
}
