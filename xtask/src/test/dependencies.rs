//! The rules of who may depend on whom, checked against what cargo resolved.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{process, workspace};

/// The crates of ours that each crate of ours may use.
const MAY_USE: &[(&str, &[&str])] = &[
    ("podvisor-proto", &[]),
    ("podvisor-annotations", &["podvisor-proto"]),
    ("podvisor-boot-entries", &[]),
    ("podvisor-devices", &[]),
    ("podvisor-vmm", &["podvisor-devices"]),
    ("podvisor-seed", &[]),
    (
        "podvisor-agent",
        &["podvisor-proto", "podvisor-boot-entries"],
    ),
    (
        "podvisor-shim",
        &[
            "podvisor-annotations",
            "podvisor-vmm",
            "podvisor-devices",
            "podvisor-proto",
            "podvisor-seed",
        ],
    ),
    (
        "podvisor",
        &["podvisor-annotations", "podvisor-proto", "podvisor-vmm"],
    ),
    (
        "podvisor-tests",
        &[
            "podvisor",
            "podvisor-shim",
            "podvisor-vmm",
            "podvisor-devices",
            "podvisor-proto",
        ],
    ),
    (
        "podvisor-benches",
        &[
            "podvisor-tests",
            "podvisor-vmm",
            "podvisor-devices",
            "podvisor-proto",
            "podvisor-seed",
        ],
    ),
    ("podvisor-xtask", &[]),
];

/// Crates of others that would break a layer: devices know no KVM descriptor, neither they nor the VMM an executor or OCI.
const MUST_NOT_USE: &[(&str, &[&str])] = &[
    (
        "podvisor-devices",
        &[
            "kvm-ioctls",
            "kvm-bindings",
            "tokio",
            "oci-spec",
            "tonic",
            "prost-build",
        ],
    ),
    ("podvisor-vmm", &["tokio", "oci-spec", "tonic"]),
    (
        "podvisor-annotations",
        &["tokio", "oci-spec", "tonic", "kvm-ioctls"],
    ),
    ("podvisor-agent", &["tonic", "kvm-ioctls"]),
    ("podvisor-shim", &["tonic"]),
];

/// Crates whose types cross crate borders: two versions of one would not fit together.
const ONE_VERSION: &[&str] = &["vm-memory", "vmm-sys-util"];
const ONE_VERSION_PREFIXES: &[&str] = &["kvm-", "virtio-"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `None` for an ordinary dependency, else "dev" or "build".
    kind: Option<String>,
}

/// Checks every rule.
///
/// # Errors
/// A rule is broken; all broken rules are named.
pub fn check() -> Result<()> {
    let json = process::output(workspace::cargo().args([
        "metadata",
        "--format-version",
        "1",
        "--locked",
    ]))?;
    let metadata: Metadata =
        serde_json::from_str(&json).context("cargo metadata is not as expected")?;
    let mut broken = wrong_directions(&metadata);
    broken.extend(duplicates(&metadata));
    if !broken.is_empty() {
        bail!("dependency rules are broken:\n  {}", broken.join("\n  "));
    }
    Ok(())
}

fn wrong_directions(metadata: &Metadata) -> Vec<String> {
    let ours: Vec<&Package> = metadata
        .packages
        .iter()
        .filter(|package| metadata.workspace_members.contains(&package.id))
        .collect();
    let names: BTreeSet<&str> = ours.iter().map(|package| package.name.as_str()).collect();
    let mut broken = Vec::new();
    for package in ours {
        let Some(may_use) = allowed(MAY_USE, &package.name) else {
            broken.push(format!("{} is not in the list of crates", package.name));
            continue;
        };
        let must_not_use = allowed(MUST_NOT_USE, &package.name).unwrap_or_default();
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            let is_foreign_layer =
                names.contains(name) && !may_use.contains(&name) && name != package.name;
            let is_forbidden = must_not_use.contains(&name) && dependency.kind.is_none();
            if is_foreign_layer || is_forbidden {
                broken.push(format!("{} must not depend on {name}", package.name));
            }
        }
    }
    broken
}

fn allowed<'a>(table: &[(&str, &'a [&'a str])], name: &str) -> Option<&'a [&'a str]> {
    table
        .iter()
        .find(|(of, _)| *of == name)
        .map(|(_, list)| *list)
}

fn duplicates(metadata: &Metadata) -> Vec<String> {
    let is_shared = |name: &str| {
        ONE_VERSION.contains(&name)
            || ONE_VERSION_PREFIXES
                .iter()
                .any(|prefix| name.starts_with(prefix))
    };
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in metadata
        .packages
        .iter()
        .filter(|package| is_shared(&package.name))
    {
        versions
            .entry(&package.name)
            .or_default()
            .push(&package.version);
    }
    versions
        .into_iter()
        .filter(|(_, versions)| versions.len() > 1)
        .map(|(name, versions)| format!("{name} is there in versions {}", versions.join(", ")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(packages: &[(&str, &str, &[&str])]) -> Metadata {
        let packages: Vec<Package> = packages
            .iter()
            .map(|(name, version, dependencies)| Package {
                id: format!("{name}@{version}"),
                name: (*name).to_owned(),
                version: (*version).to_owned(),
                dependencies: dependencies
                    .iter()
                    .map(|name| Dependency {
                        name: (*name).to_owned(),
                        kind: None,
                    })
                    .collect(),
            })
            .collect();
        let workspace_members = packages
            .iter()
            .filter(|package| package.name.starts_with("podvisor"))
            .map(|package| package.id.clone())
            .collect();
        Metadata {
            packages,
            workspace_members,
        }
    }

    #[test]
    fn a_dependency_against_the_direction_is_named() {
        let metadata = metadata(&[
            ("podvisor-vmm", "1.0.0", &["podvisor-devices"]),
            ("podvisor-devices", "1.0.0", &["podvisor-vmm", "kvm-ioctls"]),
        ]);
        assert_eq!(
            wrong_directions(&metadata),
            [
                "podvisor-devices must not depend on podvisor-vmm",
                "podvisor-devices must not depend on kvm-ioctls",
            ]
        );
    }

    #[test]
    fn a_crate_without_a_rule_is_named() {
        let metadata = metadata(&[("podvisor-new", "1.0.0", &[])]);
        assert_eq!(
            wrong_directions(&metadata),
            ["podvisor-new is not in the list of crates"]
        );
    }

    #[test]
    fn two_versions_of_a_shared_crate_are_named() {
        let metadata = metadata(&[
            ("vm-memory", "0.17.1", &[]),
            ("vm-memory", "0.18.0", &[]),
            ("syn", "1.0.0", &[]),
            ("syn", "2.0.0", &[]),
        ]);
        assert_eq!(
            duplicates(&metadata),
            ["vm-memory is there in versions 0.17.1, 0.18.0"]
        );
    }
}
