//! `linux` of the OCI runtime specification (config-linux.md).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{OciError, Resources, Seccomp};

/// Linux settings of a container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Linux {
    // The agent names the cgroup by the container's id.
    #[serde(default, rename = "cgroupsPath")]
    _cgroups_path: IgnoredAny,
    #[serde(default, rename = "mountLabel")]
    _mount_label: IgnoredAny,
    /// User mappings of the pod's user namespace.
    #[serde(default)]
    pub uid_mappings: Vec<IdMapping>,
    /// Group mappings of the pod's user namespace.
    #[serde(default)]
    pub gid_mappings: Vec<IdMapping>,
    /// Kernel settings, written inside the container's namespaces.
    #[serde(default)]
    pub sysctl: BTreeMap<String, String>,
    /// Limits of the container's cgroup.
    #[serde(default)]
    pub resources: Resources,
    /// Namespaces the container has for itself; others are the pod's. A user namespace is the
    /// pod's, too: named here, the container is in it.
    #[serde(default)]
    pub namespaces: Vec<Namespace>,
    /// Device nodes to make, beyond the default ones.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// System call filter.
    pub seccomp: Option<Seccomp>,
    /// Propagation of the root mount: `private`, `slave`, `shared`, `unbindable`, each also with a leading `r`.
    #[serde(default)]
    pub rootfs_propagation: String,
    /// Paths hidden from the container.
    #[serde(default)]
    pub masked_paths: Vec<String>,
    /// Paths the container can only read.
    #[serde(default)]
    pub readonly_paths: Vec<String>,
}

impl Linux {
    /// Whether the container has a namespace of this kind for itself.
    #[must_use]
    pub fn has_own(&self, kind: NamespaceKind) -> bool {
        self.namespaces
            .iter()
            .any(|namespace| namespace.kind == kind)
    }

    /// Who a user of the container is in the guest; the same without a user namespace, or where
    /// none is mapped.
    #[must_use]
    pub fn user_in_guest(&self, uid: u32) -> u32 {
        let found = self.uid_mappings.iter().find_map(|map| {
            let place = uid.checked_sub(map.container_id)?;
            (place < map.size).then(|| map.host_id.checked_add(place))?
        });
        found.unwrap_or(uid)
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    ///
    /// [`OciError::Unsupported`] with the field.
    pub fn check(&self) -> Result<(), OciError> {
        let fail = |field, reason| Err(OciError::Unsupported { field, reason });
        if self
            .namespaces
            .iter()
            .any(|namespace| !namespace.path.is_empty())
        {
            return fail(
                "linux.namespaces",
                "names a path, which means nothing in the guest",
            );
        }
        if self.has_own(NamespaceKind::User)
            && (self.uid_mappings.is_empty() || self.gid_mappings.is_empty())
        {
            return fail(
                "linux.uidMappings and linux.gidMappings",
                "are needed by a user namespace",
            );
        }
        if let Some(seccomp) = &self.seccomp {
            seccomp.check()?;
        }
        self.resources.check()
    }
}

/// A namespace of the container's own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// Which one.
    #[serde(rename = "type")]
    pub kind: NamespaceKind,
    /// A namespace to join; always empty in the guest.
    #[serde(default)]
    pub path: String,
}

/// Kinds of namespaces (namespaces(7)) a container can have for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceKind {
    /// Process ids.
    Pid,
    /// Interfaces, routes, sockets.
    Network,
    /// Mounts; every container has one.
    Mount,
    /// System V and POSIX message queues, semaphores, shared memory.
    Ipc,
    /// Host name.
    Uts,
    /// User and group ids.
    User,
    /// The view of the cgroup tree.
    Cgroup,
}

/// One range of a user or group mapping (user_namespaces(7)).
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdMapping {
    /// First id inside.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// First id in the guest.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// Length of the range.
    pub size: u32,
}

/// A device node to make in the container.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    /// `c`, `u`, `b` or `p`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Path in the container.
    pub path: String,
    /// Major number in the guest.
    #[serde(default)]
    pub major: u32,
    /// Minor number in the guest.
    #[serde(default)]
    pub minor: u32,
    /// Permission bits; 0o666 when absent.
    pub file_mode: Option<u32>,
    /// Owner; root when absent.
    pub uid: Option<u32>,
    /// Group; root's when absent.
    pub gid: Option<u32>,
}
