//! A container of a pod, as far as `podvisor run` supports it.

use serde::Deserialize;

use super::names::{Key, Name};
use super::pod::ResourceList;

/// A container.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    pub name: Name,
    pub image: String,
    pub image_pull_policy: Option<PullPolicy>,
    #[serde(default)]
    pub command: Vec<String>,
    #[serde(default)]
    pub args: Vec<String>,
    pub working_dir: Option<String>,
    #[serde(default)]
    pub env: Vec<EnvVar>,
    #[serde(default)]
    pub env_from: Vec<EnvFrom>,
    #[serde(default)]
    pub ports: Vec<Port>,
    #[serde(default)]
    pub resources: Resources,
    #[serde(default)]
    pub security_context: SecurityContext,
    #[serde(default)]
    pub volume_mounts: Vec<VolumeMount>,
    #[serde(default)]
    pub volume_devices: Vec<VolumeDevice>,
    #[serde(default)]
    pub stdin: bool,
    #[serde(default)]
    pub stdin_once: bool,
    #[serde(default)]
    pub tty: bool,
}

/// When an image is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// One environment variable; without value and source it is empty.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    pub name: String,
    pub value: Option<String>,
    pub value_from: Option<EnvSource>,
}

/// Where a variable's value comes from.
#[derive(Clone, Debug, Deserialize)]
pub enum EnvSource {
    #[serde(rename = "configMapKeyRef")]
    ConfigMapKey(KeySelector),
    #[serde(rename = "secretKeyRef")]
    SecretKey(KeySelector),
    #[serde(rename = "fieldRef")]
    Field(FieldSelector),
}

/// One key of a ConfigMap or Secret.
#[derive(Clone, Debug, Deserialize)]
pub struct KeySelector {
    pub name: Name,
    pub key: Key,
    #[serde(default)]
    pub optional: bool,
}

/// A field of the pod itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FieldSelector {
    pub field_path: String,
}

/// A whole ConfigMap or Secret as variables.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvFrom {
    #[serde(default)]
    pub prefix: String,
    pub config_map_ref: Option<ObjectRef>,
    pub secret_ref: Option<ObjectRef>,
}

/// A ConfigMap or Secret by name.
#[derive(Clone, Debug, Deserialize)]
pub struct ObjectRef {
    pub name: Name,
    #[serde(default)]
    pub optional: bool,
}

/// A port that a container listens on.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    pub container_port: u16,
    #[serde(default)]
    pub host_port: u16,
    #[serde(default, rename = "hostIP")]
    pub host_ip: String,
    #[serde(default)]
    pub protocol: Protocol,
    /// For services, which there are none of here.
    #[expect(dead_code, reason = "accepted, and without consequence here")]
    pub name: Option<String>,
}

/// A port's protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

/// What a container needs at least and may use at most.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Resources {
    pub limits: ResourceList,
    pub requests: ResourceList,
}

/// Security settings of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SecurityContext {
    pub capabilities: Capabilities,
    pub privileged: bool,
    pub run_as_user: Option<u32>,
    pub run_as_group: Option<u32>,
    pub run_as_non_root: Option<bool>,
    pub read_only_root_filesystem: bool,
    pub allow_privilege_escalation: Option<bool>,
    pub seccomp_profile: Option<SeccompProfile>,
}

/// Capabilities, without `CAP_`, besides the runtime's default set.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    pub add: Vec<String>,
    pub drop: Vec<String>,
}

/// Which system calls are let through.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeccompProfile {
    #[serde(rename = "type")]
    pub kind: SeccompKind,
    /// Of `Localhost`: a file below the kubelet's folder of profiles.
    pub localhost_profile: Option<String>,
}

/// Kinds of seccomp profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum SeccompKind {
    RuntimeDefault,
    Unconfined,
    Localhost,
}

/// Where a volume appears in a container.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMount {
    pub name: Name,
    pub mount_path: String,
    #[serde(default)]
    pub read_only: bool,
    #[serde(default)]
    pub mount_propagation: MountPropagation,
}

/// Where a block volume appears in a container; `/` is where a machine's own disk is.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeDevice {
    pub name: Name,
    pub device_path: String,
}

/// Whether mounts made later are seen on the other side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum MountPropagation {
    #[default]
    None,
    HostToContainer,
    Bidirectional,
}
