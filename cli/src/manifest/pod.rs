//! A Pod as far as `podvisor run` supports it. A field that is missing here is refused by name.

use std::collections::BTreeMap;

use podvisor_proto::quantity::Quantity;
use serde::Deserialize;

use super::container::{Container, SeccompProfile};
use super::names::Name;
use super::objects::ObjectMeta;
use super::volume::Volume;

/// A pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    pub metadata: ObjectMeta,
    pub spec: PodSpec,
}

/// What runs in a pod, and how.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    pub containers: Vec<Container>,
    #[serde(default)]
    pub init_containers: Vec<Container>,
    #[serde(default)]
    pub volumes: Vec<Volume>,
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    /// Seconds.
    pub termination_grace_period_seconds: Option<u32>,
    #[serde(default)]
    pub dns_policy: DnsPolicy,
    pub dns_config: Option<DnsConfig>,
    #[serde(default)]
    pub host_network: bool,
    #[serde(default, rename = "hostPID")]
    pub host_pid: bool,
    #[serde(default, rename = "hostIPC")]
    pub host_ipc: bool,
    #[serde(default)]
    pub share_process_namespace: bool,
    pub hostname: Option<Name>,
    #[serde(default)]
    pub host_aliases: Vec<HostAlias>,
    pub runtime_class_name: Option<Name>,
    /// What admission would fill in from the RuntimeClass; wins over it.
    pub overhead: Option<ResourceList>,
    #[serde(default)]
    pub security_context: PodSecurityContext,
    /// There are no service accounts here: only `false` is true.
    pub automount_service_account_token: Option<bool>,
    /// There are no services here: only `false` is true.
    pub enable_service_links: Option<bool>,
}

impl PodSpec {
    /// Seconds between the stop signal and SIGKILL.
    pub fn grace_period_seconds(&self) -> i64 {
        self.termination_grace_period_seconds.map_or(30, i64::from)
    }
}

/// What happens when a container ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum RestartPolicy {
    #[default]
    Always,
    OnFailure,
    Never,
}

/// Where name servers come from. Without a cluster both `ClusterFirst` mean the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum DnsPolicy {
    #[default]
    ClusterFirst,
    ClusterFirstWithHostNet,
    Default,
    None,
}

/// Additions to the pod's resolv.conf.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DnsConfig {
    pub nameservers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<DnsOption>,
}

/// One option of resolv.conf.
#[derive(Clone, Debug, Deserialize)]
pub struct DnsOption {
    pub name: String,
    pub value: Option<String>,
}

/// One line of /etc/hosts.
#[derive(Clone, Debug, Deserialize)]
pub struct HostAlias {
    pub ip: String,
    #[serde(default)]
    pub hostnames: Vec<String>,
}

/// Security settings of a pod, which its containers may override.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSecurityContext {
    pub run_as_user: Option<u32>,
    pub run_as_group: Option<u32>,
    pub run_as_non_root: Option<bool>,
    pub fs_group: Option<u32>,
    pub supplemental_groups: Vec<u32>,
    pub seccomp_profile: Option<SeccompProfile>,
    pub sysctls: Vec<Sysctl>,
}

/// A kernel parameter of the pod.
#[derive(Clone, Debug, Deserialize)]
pub struct Sysctl {
    pub name: String,
    pub value: String,
}

/// Amounts of CPU and memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ResourceList {
    pub cpu: Option<Quantity>,
    pub memory: Option<Quantity>,
}

/// Labels of the kubelet that tell what a sandbox or container belongs to.
pub fn kubernetes_labels(metadata: &ObjectMeta, uid: &str) -> BTreeMap<String, String> {
    [
        ("io.kubernetes.pod.name", metadata.name.as_str()),
        ("io.kubernetes.pod.namespace", metadata.namespace()),
        ("io.kubernetes.pod.uid", uid),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}
