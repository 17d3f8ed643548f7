//! Reads a pod manifest: one Pod, or a StatefulSet or Job that makes one, and the ConfigMaps, Secrets,
//! PersistentVolumeClaims and RuntimeClasses it uses.
//!
//! What a document says and these types do not know is an error that names the field: nothing is
//! ignored.

pub mod claim;
pub mod container;
pub mod names;
pub mod objects;
pub mod pod;
pub mod volume;
mod workload;

use std::collections::BTreeMap;
use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use claim::{Claim, ClaimDocument};
use names::Name;
use objects::{ConfigMap, KeyedData, ObjectMeta, RuntimeClass, Secret, Service};
use pod::Pod;
use workload::{Job, Made, StatefulSet};

/// A pod with what it refers to.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub pod: Pod,
    pub objects: Objects,
}

/// What a pod can refer to, by name; of its own namespace only.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub config_maps: BTreeMap<Name, KeyedData>,
    pub secrets: BTreeMap<Name, KeyedData>,
    pub runtime_classes: BTreeMap<Name, RuntimeClass>,
    pub claims: BTreeMap<Name, Claim>,
}

/// Why a manifest cannot be run.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// Not YAML.
    #[error("not YAML: {0}")]
    Syntax(String),
    /// A document without kind, or of one that is not supported.
    #[error(
        "document {document}: kind {kind:?} of {api_version:?} is not supported by podvisor run"
    )]
    Kind {
        document: usize,
        kind: String,
        api_version: String,
    },
    /// A field that is wrong.
    #[error("{object}: {path}: {message}")]
    Field {
        object: String,
        path: String,
        message: String,
    },
    /// Fields that say more than is supported.
    #[error("{}", Unsupported(.0))]
    Unsupported(Vec<String>),
    /// No pod, or several.
    #[error("the manifest has {0} pods; podvisor run takes one")]
    Pods(usize),
    /// Another document where a RuntimeClass should be.
    #[error("the document is no RuntimeClass")]
    NoRuntimeClass,
}

/// One field a line.
struct Unsupported<'a>(&'a [String]);

impl fmt::Display for Unsupported<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, field) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{field}: not supported by podvisor run")?;
        }
        Ok(())
    }
}

impl Manifest {
    /// Reads the documents of a YAML text.
    ///
    /// # Errors
    ///
    /// See [`ManifestError`]; all unsupported fields are reported together.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, yaml_options())
            .map_err(|error| ManifestError::Syntax(error.to_string()))?;
        let mut reader = Reader::default();
        for (index, document) in documents.into_iter().enumerate() {
            reader.read(index + 1, document)?;
        }
        reader.finish()
    }
}

/// Reads a RuntimeClass that stands alone.
///
/// # Errors
///
/// As [`Manifest::parse`].
pub fn runtime_class(text: &str) -> Result<RuntimeClass, ManifestError> {
    let mut reader = Reader::default();
    let document = serde_saphyr::from_str_with_options(text, yaml_options())
        .map_err(|error| ManifestError::Syntax(error.to_string()))?;
    reader.read(1, document)?;
    if !reader.unsupported.is_empty() {
        return Err(ManifestError::Unsupported(reader.unsupported));
    }
    reader
        .runtime_classes
        .pop()
        .ok_or(ManifestError::NoRuntimeClass)
}

/// Kubernetes reads YAML 1.1, where file modes such as 0644 are octal.
fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! { legacy_octal_numbers: true }
}

/// Collects documents by kind.
#[derive(Default)]
struct Reader {
    pods: Vec<Pod>,
    config_maps: Vec<ConfigMap>,
    secrets: Vec<Secret>,
    runtime_classes: Vec<RuntimeClass>,
    claims: Vec<ClaimDocument>,
    /// Those that a StatefulSet makes for its pod.
    made_claims: Vec<(Name, Claim)>,
    unsupported: Vec<String>,
}

impl Reader {
    fn read(&mut self, number: usize, mut document: Value) -> Result<(), ManifestError> {
        remove_nulls(&mut document);
        if document.is_null() {
            return Ok(());
        }
        let mut take = |key: &str| {
            let value = document
                .as_object_mut()
                .and_then(|fields| fields.remove(key));
            value
                .and_then(|value| value.as_str().map(str::to_owned))
                .unwrap_or_default()
        };
        let (kind, api_version) = (take("kind"), take("apiVersion"));
        let unsupported = &mut self.unsupported;
        match (kind.as_str(), api_version.as_str()) {
            ("Pod", "v1") => self.pods.push(typed(&kind, document, unsupported)?),
            ("StatefulSet", "apps/v1") => {
                let set: StatefulSet = typed(&kind, document, unsupported)?;
                let made = set.first_pod(unsupported)?;
                self.take(made);
            }
            ("Job", "batch/v1") => {
                let job: Job = typed(&kind, document, unsupported)?;
                let made = job.first_pod(unsupported)?;
                self.take(made);
            }
            ("ConfigMap", "v1") => self.config_maps.push(typed(&kind, document, unsupported)?),
            ("Secret", "v1") => self.secrets.push(typed(&kind, document, unsupported)?),
            ("PersistentVolumeClaim", "v1") => {
                self.claims.push(typed(&kind, document, unsupported)?);
            }
            ("RuntimeClass", "node.k8s.io/v1") => {
                self.runtime_classes
                    .push(typed(&kind, document, unsupported)?);
            }
            ("Service", "v1") => {
                let service: Service = typed(&kind, document, unsupported)?;
                if !service.is_headless() {
                    unsupported.push("spec.clusterIP other than None".to_owned());
                }
            }
            _ => {
                return Err(ManifestError::Kind {
                    document: number,
                    kind,
                    api_version,
                });
            }
        }
        Ok(())
    }

    fn take(&mut self, made: Made) {
        self.pods.push(made.pod);
        self.made_claims.extend(made.claims);
    }

    fn finish(self) -> Result<Manifest, ManifestError> {
        let count = self.pods.len();
        let [pod] = <[Pod; 1]>::try_from(self.pods).map_err(|_| ManifestError::Pods(count))?;
        let mut unsupported = self.unsupported;
        unsupported.extend(claims_of_a_cluster(&pod));
        if !unsupported.is_empty() {
            return Err(ManifestError::Unsupported(unsupported));
        }
        let visible = |metadata: &ObjectMeta| metadata.namespace() == pod.metadata.namespace();
        let claims = self
            .claims
            .into_iter()
            .filter(|claim| visible(&claim.metadata))
            .map(|claim| (claim.metadata.name, claim.spec));
        let objects = Objects {
            // A claim that is there already is the one that a StatefulSet's pod gets.
            claims: self.made_claims.into_iter().chain(claims).collect(),
            config_maps: self
                .config_maps
                .into_iter()
                .filter(|object| visible(&object.metadata))
                .map(|object| (object.metadata.name.clone(), object.into_data()))
                .collect(),
            secrets: self
                .secrets
                .into_iter()
                .filter(|object| visible(&object.metadata))
                .map(|object| (object.metadata.name.clone(), object.into_data()))
                .collect(),
            runtime_classes: self
                .runtime_classes
                .into_iter()
                .map(|class| (class.metadata.name.clone(), class))
                .collect(),
        };
        Ok(Manifest { pod, objects })
    }
}

/// Settings that only a cluster could honour.
fn claims_of_a_cluster(pod: &Pod) -> Vec<String> {
    let claims = [
        (
            "spec.automountServiceAccountToken",
            pod.spec.automount_service_account_token,
        ),
        ("spec.enableServiceLinks", pod.spec.enable_service_links),
    ];
    let wanted = claims
        .into_iter()
        .filter(|(_, wanted)| *wanted == Some(true));
    wanted.map(|(field, _)| format!("{field}: true")).collect()
}

/// Reads a document into `T` and notes the fields that `T` does not know.
fn typed<T: DeserializeOwned>(
    kind: &str,
    document: Value,
    unsupported: &mut Vec<String>,
) -> Result<T, ManifestError> {
    let name = document
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or("?");
    let object = format!("{kind} {name}");
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(document, &mut track);
    let result = serde_ignored::deserialize(deserializer, |path| {
        unsupported.push(field_path(&path));
    });
    result.map_err(|error: serde_json::Error| ManifestError::Field {
        object,
        path: track.path().to_string(),
        message: error.to_string(),
    })
}

/// A path as people write it: `spec.containers[0].lifecycle`.
fn field_path(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", field_path(parent)),
        Path::Map { parent, key } => match field_path(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => field_path(parent),
    }
}

/// A field that is null is a field that is not there, as in the API server.
fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests;
