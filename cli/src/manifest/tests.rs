//! What is read, and what is refused by name.

use super::container::PullPolicy;
use super::pod::RestartPolicy;
use super::*;

const MINIMAL: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - name: app
    image: busybox
";

#[test]
fn a_minimal_pod_has_kubernetes_defaults() {
    let pod = Manifest::parse(MINIMAL).unwrap().pod;
    assert_eq!(pod.metadata.namespace(), "default");
    assert_eq!(pod.spec.restart_policy, RestartPolicy::Always);
    assert_eq!(pod.spec.grace_period_seconds(), 30);
    assert_eq!(pod.spec.containers[0].image_pull_policy, None);
}

#[test]
fn every_unsupported_field_is_named() {
    let text = "
apiVersion: v1
kind: Pod
metadata: {name: web, finalizers: [a]}
spec:
  nodeSelector: {a: b}
  automountServiceAccountToken: true
  containers:
  - name: app
    image: busybox
    lifecycle: {}
    livenessProbe: {exec: {command: [x]}}
    resources: {limits: {nvidia.com/gpu: 1}}
  volumes:
  - name: v
    nfs: {server: a}
";
    let error = Manifest::parse(text).unwrap_err().to_string();
    let mut fields: Vec<_> = error
        .lines()
        .map(|line| {
            line.strip_suffix(": not supported by podvisor run")
                .unwrap()
        })
        .collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            "metadata.finalizers",
            "spec.automountServiceAccountToken: true",
            "spec.containers[0].lifecycle",
            "spec.containers[0].livenessProbe",
            "spec.containers[0].resources.limits.nvidia.com/gpu",
            "spec.nodeSelector",
            "spec.volumes[0].nfs",
        ]
    );
}

#[test]
fn a_wrong_value_is_reported_with_its_path() {
    let text = MINIMAL.replace(
        "image: busybox",
        "image: busybox\n    imagePullPolicy: Sometimes",
    );
    let error = Manifest::parse(&text).unwrap_err().to_string();
    assert!(
        error.starts_with("Pod web: spec.containers[0].imagePullPolicy: "),
        "{error}"
    );
    let text = MINIMAL.replace("name: app", "name: ../app");
    let error = Manifest::parse(&text).unwrap_err().to_string();
    assert!(
        error.starts_with("Pod web: spec.containers[0].name: "),
        "{error}"
    );
}

#[test]
fn null_means_absent() {
    let text = MINIMAL.replace(
        "image: busybox",
        "image: busybox\n    command: null\n    lifecycle:",
    );
    assert!(Manifest::parse(&text).is_ok());
}

#[test]
fn objects_of_the_pods_namespace_come_along() {
    let text = format!(
        "{MINIMAL}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: settings}}
data: {{greeting: hello}}
binaryData: {{blob: AAE=}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: elsewhere, namespace: other}}
---
apiVersion: v1
kind: Secret
metadata: {{name: key}}
type: Opaque
data: {{a: Zm9v, b: Zm9v}}
stringData: {{b: bar}}
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {{name: podvisor}}
handler: podvisor
overhead: {{podFixed: {{memory: 64Mi}}}}
"
    );
    let objects = Manifest::parse(&text).unwrap().objects;
    let data: Vec<_> = objects
        .config_maps
        .values()
        .flat_map(BTreeMap::values)
        .collect();
    assert_eq!(data, [&vec![0, 1], &b"hello".to_vec()]);
    let secrets: Vec<_> = objects
        .secrets
        .values()
        .flat_map(BTreeMap::values)
        .collect();
    assert_eq!(secrets, [b"foo", b"bar"]);
    let class = objects.runtime_classes.values().next().unwrap();
    assert_eq!(class.overhead.pod_fixed.memory.unwrap().units(), 64 << 20);
}

#[test]
fn other_kinds_and_other_numbers_of_pods_are_refused() {
    let error = Manifest::parse("apiVersion: apps/v1\nkind: Deployment\n").unwrap_err();
    assert!(matches!(error, ManifestError::Kind { document: 1, .. }));
    let error = Manifest::parse(&format!("{MINIMAL}---{MINIMAL}")).unwrap_err();
    assert!(matches!(error, ManifestError::Pods(2)));
    assert!(matches!(
        Manifest::parse("").unwrap_err(),
        ManifestError::Pods(0)
    ));
    assert!(matches!(
        Manifest::parse("a: [").unwrap_err(),
        ManifestError::Syntax(_)
    ));
}

#[test]
fn pull_policies_are_those_of_kubernetes() {
    let text = MINIMAL.replace(
        "image: busybox",
        "image: busybox\n    imagePullPolicy: Never",
    );
    let pod = Manifest::parse(&text).unwrap().pod;
    assert_eq!(
        pod.spec.containers[0].image_pull_policy,
        Some(PullPolicy::Never)
    );
}
