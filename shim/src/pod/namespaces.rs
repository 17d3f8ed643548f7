//! The namespaces of a spec: the container's own, those of the pod, and the host's, which no
//! machine has a part in.

use std::path::Path;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};
use thiserror::Error;

use super::users::{UserMaps, UserMapsError};

/// A namespace that a VM pod cannot have.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NamespaceError {
    /// The host's processes.
    #[error("a pod in its own VM cannot see the host's processes: set hostPID to false")]
    HostPid,
    /// The host's shared memory, semaphores and message queues.
    #[error("a pod in its own VM has no part in the host's IPC: set hostIPC to false")]
    HostIpc,
    /// Users that are others than the pod's.
    #[error(
        "linux.namespaces: a container has the user namespace of its pod (hostUsers), none of its own"
    )]
    User,
    /// Users that are others outside of the pod, and nobody says who.
    #[error(transparent)]
    Users(#[from] UserMapsError),
}

/// Makes sure that a pod's guest can have the namespaces of its spec.
///
/// # Errors
/// [`NamespaceError`].
pub fn check_pod(spec: &Spec) -> Result<(), NamespaceError> {
    UserMaps::of_pod(spec)?;
    // A sandbox always has those of its own, except where it shares them with the host.
    for (kind, error) in [
        (LinuxNamespaceType::Pid, NamespaceError::HostPid),
        (LinuxNamespaceType::Ipc, NamespaceError::HostIpc),
    ] {
        if !all(spec).iter().any(|namespace| namespace.typ() == kind) {
            return Err(error);
        }
    }
    Ok(())
}

/// Makes sure that a guest can have a container's namespaces. A `standalone` container's user
/// namespace is the pod's.
///
/// # Errors
/// [`NamespaceError::User`].
pub fn check(spec: &Spec, standalone: bool) -> Result<(), NamespaceError> {
    let own_users = |namespace: &LinuxNamespace| {
        namespace.typ() == LinuxNamespaceType::User && path_of(namespace).is_none()
    };
    if !standalone && all(spec).iter().any(own_users) {
        return Err(NamespaceError::User);
    }
    Ok(())
}

/// The namespaces that the guest is told of: the container's own. One with a path is shared within
/// the pod: then it is the guest's, except for the pod's user namespace, which not every container
/// has to be in. A `standalone` container owns its guest's network.
pub fn own(spec: &Spec, standalone: bool) -> Vec<LinuxNamespace> {
    let is_told = |namespace: &&LinuxNamespace| match namespace.typ() {
        LinuxNamespaceType::User => true,
        LinuxNamespaceType::Network if standalone => false,
        _ => path_of(namespace).is_none(),
    };
    let without_path = |mut namespace: LinuxNamespace| {
        namespace.set_path(None);
        namespace
    };
    let told = all(spec).iter().filter(is_told).cloned();
    told.map(without_path).collect()
}

/// The process of the host whose process namespace a container is to join, by the path that
/// containerd makes of its number: `/proc/NUMBER/ns/pid`.
pub fn joined_process(spec: &Spec) -> Option<u32> {
    let namespaces = all(spec);
    let namespace = namespaces
        .iter()
        .find(|namespace| namespace.typ() == LinuxNamespaceType::Pid)?;
    let number = path_of(namespace)?.strip_prefix("/proc").ok()?;
    number.iter().next()?.to_str()?.parse().ok()
}

fn all(spec: &Spec) -> &[LinuxNamespace] {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_deref());
    namespaces.unwrap_or_default()
}

/// The path of a namespace that exists already.
fn path_of(namespace: &LinuxNamespace) -> Option<&Path> {
    let path = namespace.path().as_deref();
    path.filter(|path| !path.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(namespaces: &str) -> Spec {
        let json = format!(r#"{{"ociVersion":"1.1.0","linux":{{"namespaces":{namespaces}}}}}"#);
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn what_is_the_hosts_is_refused_by_its_field() {
        let check = |namespaces| check_pod(&spec(namespaces));
        assert_eq!(check(r#"[{"type":"pid"},{"type":"ipc"}]"#), Ok(()));
        let error = check(r#"[{"type":"ipc"}]"#);
        assert_eq!(error, Err(NamespaceError::HostPid));
        let error = check(r#"[{"type":"pid"}]"#);
        assert_eq!(error, Err(NamespaceError::HostIpc));
        let error = check(r#"[{"type":"pid"},{"type":"ipc"},{"type":"user"}]"#);
        assert_eq!(error, Err(UserMapsError::Missing.into()));
        assert!(NamespaceError::HostIpc.to_string().contains("hostIPC"));
    }

    #[test]
    fn a_container_owns_what_has_no_path() {
        let spec = spec(
            r#"[{"type":"pid"},{"type":"ipc","path":"/proc/7/ns/ipc"},{"type":"network"},
                {"type":"uts","path":""}]"#,
        );
        let kinds = |standalone| -> Vec<_> {
            let own = own(&spec, standalone);
            own.iter().map(LinuxNamespace::typ).collect()
        };
        use LinuxNamespaceType::{Network, Pid, Uts};
        assert_eq!(kinds(false), [Pid, Network, Uts]);
        assert_eq!(kinds(true), [Pid, Uts]);
    }

    #[test]
    fn a_containers_users_are_the_pods() {
        let joined = spec(r#"[{"type":"user","path":"/proc/7/ns/user"}]"#);
        assert_eq!(check(&joined, false), Ok(()));
        let told = own(&joined, false);
        assert_eq!(told[0].typ(), LinuxNamespaceType::User);
        assert_eq!(told[0].path(), &None);
        let own = spec(r#"[{"type":"user"}]"#);
        assert_eq!(check(&own, false), Err(NamespaceError::User));
        assert_eq!(check(&own, true), Ok(()));
    }

    #[test]
    fn a_joined_process_is_known_by_its_number() {
        let joined = |namespaces| joined_process(&spec(namespaces));
        let pid =
            r#"[{"type":"ipc","path":"/proc/8/ns/ipc"},{"type":"pid","path":"/proc/77/ns/pid"}]"#;
        assert_eq!(joined(pid), Some(77));
        assert_eq!(joined(r#"[{"type":"pid"}]"#), None);
        assert_eq!(joined(r#"[{"type":"pid","path":"/run/pid"}]"#), None);
    }
}
