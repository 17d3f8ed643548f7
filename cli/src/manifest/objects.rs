//! The objects of a manifest besides the pod: ConfigMap, Secret, RuntimeClass.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::Value;

use super::names::{Key, Name};
use super::pod::ResourceList;

/// Name and labels of an object.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectMeta {
    pub name: Name,
    pub namespace: Option<Name>,
    pub uid: Option<Name>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl ObjectMeta {
    /// The object's namespace; `default` when it names none.
    pub fn namespace(&self) -> &str {
        self.namespace.as_ref().map_or("default", Name::as_str)
    }
}

/// Bytes written in base64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Base64(Vec<u8>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let text: String = text.split_whitespace().collect();
        STANDARD.decode(text).map(Self).map_err(D::Error::custom)
    }
}

/// Contents of a ConfigMap or Secret by key.
pub type KeyedData = BTreeMap<Key, Vec<u8>>;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConfigMap {
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    data: BTreeMap<Key, String>,
    #[serde(default)]
    binary_data: BTreeMap<Key, Base64>,
    /// Says nothing to a pod that runs once.
    #[serde(default)]
    #[expect(dead_code, reason = "accepted, and without consequence here")]
    immutable: bool,
}

impl ConfigMap {
    pub(super) fn into_data(self) -> KeyedData {
        let text = self
            .data
            .into_iter()
            .map(|(key, value)| (key, value.into_bytes()));
        let binary = self
            .binary_data
            .into_iter()
            .map(|(key, value)| (key, value.0));
        text.chain(binary).collect()
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Secret {
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    data: BTreeMap<Key, Base64>,
    #[serde(default)]
    string_data: BTreeMap<Key, String>,
    /// Only tells API clients what the keys are.
    #[serde(default, rename = "type")]
    #[expect(dead_code, reason = "accepted, and without consequence here")]
    kind: String,
    #[serde(default)]
    #[expect(dead_code, reason = "accepted, and without consequence here")]
    immutable: bool,
}

impl Secret {
    /// `stringData` wins over `data`, as in the API server.
    pub(super) fn into_data(self) -> KeyedData {
        let binary = self.data.into_iter().map(|(key, value)| (key, value.0));
        let text = self
            .string_data
            .into_iter()
            .map(|(key, value)| (key, value.into_bytes()));
        binary.chain(text).collect()
    }
}

/// A headless Service, which a StatefulSet must name. There are no services here, and nobody to ask
/// for such names.
#[derive(Debug, Deserialize)]
pub(super) struct Service {
    #[expect(dead_code, reason = "accepted, and without consequence here")]
    metadata: ObjectMeta,
    spec: ServiceSpec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(default, rename = "clusterIP")]
    cluster_ip: String,
    #[expect(dead_code, reason = "accepted, and without consequence here")]
    selector: Option<Value>,
    #[expect(dead_code, reason = "accepted, and without consequence here")]
    ports: Option<Value>,
}

impl Service {
    /// Whether it has no address of its own.
    pub(super) fn is_headless(&self) -> bool {
        self.spec.cluster_ip == "None"
    }
}

/// Which runtime handler runs the pods of a class, and what they cost beyond their containers.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeClass {
    pub(super) metadata: ObjectMeta,
    pub handler: Name,
    #[serde(default)]
    pub overhead: Overhead,
}

impl RuntimeClass {
    /// What pods call it.
    pub fn name(&self) -> &Name {
        &self.metadata.name
    }
}

/// What a pod needs besides its containers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Overhead {
    pub pod_fixed: ResourceList,
}
