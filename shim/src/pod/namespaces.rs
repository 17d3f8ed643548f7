//! The namespaces of a spec: the container's own, those of the pod, and the host's, which no
//! machine has a part in.

use std::path::Path;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};
use thiserror::Error;

/// A namespace that a VM pod cannot have.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NamespaceError {
    /// The host's processes.
    #[error("a pod in its own VM cannot see the host's processes: set hostPID to false")]
    HostPid,
    /// The host's shared memory, semaphores and message queues.
    #[error("a pod in its own VM has no part in the host's IPC: set hostIPC to false")]
    HostIpc,
    /// Users that are others on the host.
    #[error("linux.namespaces: a VM pod has no user namespace: set hostUsers to true")]
    User,
}

/// Makes sure that a pod's guest can have the namespaces of its spec.
///
/// # Errors
/// [`NamespaceError`].
pub fn check_pod(spec: &Spec) -> Result<(), NamespaceError> {
    check(spec)?;
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

/// Makes sure that a guest can have a container's namespaces.
///
/// # Errors
/// [`NamespaceError::User`].
pub fn check(spec: &Spec) -> Result<(), NamespaceError> {
    let users = |namespace: &LinuxNamespace| namespace.typ() == LinuxNamespaceType::User;
    if all(spec).iter().any(users) {
        return Err(NamespaceError::User);
    }
    Ok(())
}

/// The namespaces that are the container's own. One with a path is shared within the pod: then it
/// is the guest's. A `standalone` container owns its guest's network.
pub fn own(spec: &Spec, standalone: bool) -> Vec<LinuxNamespace> {
    let is_own = |namespace: &&LinuxNamespace| {
        let guests = standalone && namespace.typ() == LinuxNamespaceType::Network;
        path_of(namespace).is_none() && !guests
    };
    all(spec).iter().filter(is_own).cloned().collect()
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
        assert_eq!(error, Err(NamespaceError::User));
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
    fn a_joined_process_is_known_by_its_number() {
        let joined = |namespaces| joined_process(&spec(namespaces));
        let pid =
            r#"[{"type":"ipc","path":"/proc/8/ns/ipc"},{"type":"pid","path":"/proc/77/ns/pid"}]"#;
        assert_eq!(joined(pid), Some(77));
        assert_eq!(joined(r#"[{"type":"pid"}]"#), None);
        assert_eq!(joined(r#"[{"type":"pid","path":"/run/pid"}]"#), None);
    }
}
