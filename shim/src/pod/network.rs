//! Which network a pod asks for.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use thiserror::Error;

/// The network of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodNetwork {
    /// What the network namespace at this path has.
    Namespace(PathBuf),
    /// None but the loopback device.
    Isolated,
}

/// A network that a machine cannot have.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a pod in its own VM cannot use the host network: set hostNetwork to false")]
pub struct HostNetworkError;

impl PodNetwork {
    /// The network in a pod's spec.
    ///
    /// # Errors
    /// [`HostNetworkError`] when it is the host's.
    pub fn of_spec(spec: &Spec) -> Result<Self, HostNetworkError> {
        let namespaces = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.namespaces().as_ref());
        let network = namespaces
            .and_then(|all| {
                all.iter()
                    .find(|namespace| namespace.typ() == LinuxNamespaceType::Network)
            })
            .ok_or(HostNetworkError)?;
        let path = network
            .path()
            .as_ref()
            .filter(|path| !path.as_os_str().is_empty());
        Ok(path.map_or(Self::Isolated, |path| Self::Namespace(path.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(namespaces: &str) -> Result<PodNetwork, HostNetworkError> {
        let json = format!(r#"{{"ociVersion":"1.1.0","linux":{{"namespaces":{namespaces}}}}}"#);
        PodNetwork::of_spec(&serde_json::from_str(&json).unwrap())
    }

    #[test]
    fn a_missing_network_namespace_is_the_hosts_and_refused() {
        assert_eq!(network(r#"[{"type":"pid"}]"#), Err(HostNetworkError));
        let named = network(r#"[{"type":"network","path":"/var/run/netns/cni-1"}]"#);
        assert_eq!(
            named,
            Ok(PodNetwork::Namespace("/var/run/netns/cni-1".into()))
        );
        assert_eq!(network(r#"[{"type":"network"}]"#), Ok(PodNetwork::Isolated));
    }
}
