//! From a manifest to the requests that the kubelet would make of it. Pure: what has been found out
//! about the machine comes in, nothing is looked up here.

mod container;
mod dns;
mod environment;
mod resources;
mod sandbox;
mod security;

use std::collections::BTreeMap;
use std::path::PathBuf;

use thiserror::Error;

use crate::manifest::names::Name;
use crate::manifest::pod::ResourceList;

pub use container::{ImageUser, ReadyImage, container_config, grace_period_seconds};
pub use resources::{PodLimits, Qos, pod_limits, qos};
pub use sandbox::{MANAGED_LABEL, hosts_file, sandbox_config};

/// What is known of a pod besides its manifest.
#[derive(Clone, Debug, Default)]
pub struct PodContext {
    pub uid: String,
    /// Of this machine.
    pub node_name: String,
    pub hostname: String,
    /// Bytes of memory of this machine.
    pub node_memory_bytes: i64,
    /// Content of this machine's resolv.conf.
    pub resolv_conf: String,
    pub log_directory: PathBuf,
    /// In cgroupfs's form.
    pub cgroup_parent: String,
    /// What the pod costs beyond its containers.
    pub overhead: ResourceList,
    /// Where each volume is on this machine.
    pub volumes: BTreeMap<Name, PathBuf>,
    /// The pod's /etc/hosts, when it has one of its own.
    pub hosts_file: Option<PathBuf>,
    /// The pod's addresses; empty until its sandbox runs.
    pub ips: Vec<String>,
}

/// Why a manifest cannot be turned into requests.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TranslateError {
    /// A container mounts what the pod has not.
    #[error("container {container}: volume {volume} is not among the pod's")]
    UnknownVolume { container: String, volume: String },
    /// A ConfigMap or Secret, or a key of it, that is not in the file.
    #[error("container {container}: {what} is not in the manifest")]
    MissingObject { container: String, what: String },
    /// A variable taken from a field that is not supported.
    #[error(
        "container {container}: env {variable}: field {field} is not supported by podvisor run"
    )]
    Field {
        container: String,
        variable: String,
        field: String,
    },
    /// A variable's value must be text.
    #[error("container {container}: env {variable}: {what} is not UTF-8")]
    NotText {
        container: String,
        variable: String,
        what: String,
    },
    /// `runAsNonRoot`, and yet root.
    #[error("container {container}: runAsNonRoot, but {why}")]
    Root { container: String, why: String },
    /// A profile of kind Localhost needs a file.
    #[error("seccompProfile: Localhost needs localhostProfile, a path below {folder}")]
    SeccompProfile { folder: &'static str },
}

#[cfg(test)]
pub(crate) mod testing {
    //! Manifests for tests.

    use super::*;
    use crate::manifest::Manifest;

    /// A pod with these lines in its spec, and these documents beside it.
    pub(crate) fn manifest(spec: &str, documents: &str) -> Manifest {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  labels: {{app: shop}}\n  \
             annotations: {{podvisor.io/cpus: '2'}}\nspec:\n{spec}\n---\n{documents}"
        );
        Manifest::parse(&text).unwrap()
    }

    /// What is known of that pod.
    pub(crate) fn context() -> PodContext {
        PodContext {
            uid: "uid-1".into(),
            node_name: "node".into(),
            hostname: "web".into(),
            node_memory_bytes: 8 << 30,
            log_directory: "/var/log/pods/default_web_uid-1".into(),
            cgroup_parent: "/kubepods/poduid-1".into(),
            ips: vec!["10.88.0.2".into(), "fd00:88::2".into()],
            ..PodContext::default()
        }
    }
}
