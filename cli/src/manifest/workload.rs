//! StatefulSets and Jobs: their first pod, as their controllers would make it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::ManifestError;
use super::claim::{Claim, ClaimDocument};
use super::names::Name;
use super::objects::ObjectMeta;
use super::pod::{Pod, PodSpec, RestartPolicy};
use super::volume::{ClaimVolume, Volume};

/// A pod with the claims that were made for it.
pub(super) struct Made {
    pub(super) pod: Pod,
    pub(super) claims: Vec<(Name, Claim)>,
}

/// What pods are made after.
#[derive(Clone, Debug, Deserialize)]
struct Template {
    #[serde(default)]
    metadata: TemplateMeta,
    spec: PodSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct TemplateMeta {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

/// A set of pods with names and claims that stay.
#[derive(Debug, Deserialize)]
pub(super) struct StatefulSet {
    metadata: ObjectMeta,
    spec: StatefulSetSpec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StatefulSetSpec {
    replicas: Option<u32>,
    template: Template,
    #[serde(default)]
    volume_claim_templates: Vec<ClaimDocument>,
    /// There are no services here.
    #[expect(dead_code, reason = "accepted, and without consequence here")]
    service_name: Option<Name>,
    #[expect(dead_code, reason = "accepted, and without consequence here")]
    selector: Option<Value>,
    /// One pod is started in one order and updated by being run again.
    #[expect(dead_code, reason = "accepted, and without consequence here")]
    pod_management_policy: Option<String>,
    #[expect(dead_code, reason = "accepted, and without consequence here")]
    update_strategy: Option<Value>,
}

/// A pod that runs to its end.
#[derive(Debug, Deserialize)]
pub(super) struct Job {
    metadata: ObjectMeta,
    spec: JobSpec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct JobSpec {
    template: Template,
    parallelism: Option<u32>,
    completions: Option<u32>,
    backoff_limit: Option<u32>,
}

impl StatefulSet {
    /// The pod of ordinal 0; what only a cluster could do is put into `unsupported`.
    pub(super) fn first_pod(self, unsupported: &mut Vec<String>) -> Result<Made, ManifestError> {
        let Self { metadata, spec } = self;
        only(1, "spec.replicas", spec.replicas, unsupported);
        if spec.template.spec.restart_policy != RestartPolicy::Always {
            return Err(wrong_restart_policy("StatefulSet", &metadata, "Always"));
        }
        let mut pod = pod_of(spec.template, &metadata)?;
        let labels = [
            ("apps.kubernetes.io/pod-index", "0"),
            (
                "statefulset.kubernetes.io/pod-name",
                pod.metadata.name.as_str(),
            ),
        ];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut claims = Vec::new();
        for template in spec.volume_claim_templates {
            let volume = template.metadata.name;
            let name = Name::try_from(format!("{volume}-{}", pod.metadata.name));
            let claim_name = name.map_err(|error| ManifestError::Field {
                object: format!("StatefulSet {}", metadata.name),
                path: "spec.volumeClaimTemplates".to_owned(),
                message: error.to_string(),
            })?;
            // The claim takes the place of a volume of its name.
            pod.spec.volumes.retain(|other| other.name != volume);
            pod.spec.volumes.push(Volume::of_claim(
                volume,
                ClaimVolume {
                    claim_name: claim_name.clone(),
                    read_only: false,
                },
            ));
            claims.push((claim_name, template.spec));
        }
        pod.metadata.labels.extend(labels);
        Ok(Made { pod, claims })
    }
}

impl Job {
    /// The Job's one pod; what only a cluster could do is put into `unsupported`.
    pub(super) fn first_pod(self, unsupported: &mut Vec<String>) -> Result<Made, ManifestError> {
        let Self { metadata, spec } = self;
        only(1, "spec.parallelism", spec.parallelism, unsupported);
        only(1, "spec.completions", spec.completions, unsupported);
        // Further pods after one that failed are the controller's to make.
        only(0, "spec.backoffLimit", spec.backoff_limit, unsupported);
        if spec.template.spec.restart_policy == RestartPolicy::Always {
            return Err(wrong_restart_policy("Job", &metadata, "OnFailure or Never"));
        }
        let mut pod = pod_of(spec.template, &metadata)?;
        let label = "batch.kubernetes.io/job-name".to_owned();
        pod.metadata.labels.insert(label, metadata.name.to_string());
        let claims = Vec::new();
        Ok(Made { pod, claims })
    }
}

fn pod_of(template: Template, owner: &ObjectMeta) -> Result<Pod, ManifestError> {
    let name = Name::try_from(format!("{}-0", owner.name));
    let name = name.map_err(|error| ManifestError::Field {
        object: owner.name.to_string(),
        path: "metadata.name".to_owned(),
        message: error.to_string(),
    })?;
    Ok(Pod {
        metadata: ObjectMeta {
            name,
            namespace: owner.namespace.clone(),
            uid: None,
            labels: template.metadata.labels,
            annotations: template.metadata.annotations,
        },
        spec: template.spec,
    })
}

/// Notes a number other than the one that podvisor run can do.
fn only(number: u32, field: &str, given: Option<u32>, unsupported: &mut Vec<String>) {
    if let Some(given) = given.filter(|given| *given != number) {
        unsupported.push(format!("{field}: {given}"));
    }
}

fn wrong_restart_policy(kind: &str, owner: &ObjectMeta, allowed: &str) -> ManifestError {
    ManifestError::Field {
        object: format!("{kind} {}", owner.name),
        path: "spec.template.spec.restartPolicy".to_owned(),
        message: format!("a {kind} takes {allowed}"),
    }
}
