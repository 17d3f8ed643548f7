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

const SET: &str = "
apiVersion: v1
kind: Service
metadata: {name: pets}
spec: {clusterIP: None, selector: {app: pet}, ports: [{port: 22}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: pet, namespace: zoo}
spec:
  serviceName: pets
  replicas: 1
  selector: {matchLabels: {app: pet}}
  template:
    metadata:
      labels: {app: pet}
      annotations: {podvisor.io/boot: machine}
    spec:
      runtimeClassName: podvisor
      containers:
      - name: machine
        image: debian
        stdin: true
        tty: true
        volumeDevices: [{name: disk, devicePath: /}]
  volumeClaimTemplates:
  - metadata: {name: disk}
    spec:
      accessModes: [ReadWriteOnce]
      volumeMode: Block
      resources: {requests: {storage: 8Gi}}
";

#[test]
fn a_stateful_set_is_its_first_pod_with_its_claims() {
    let Manifest { pod, objects } = Manifest::parse(SET).unwrap();
    assert_eq!(pod.metadata.name.as_str(), "pet-0");
    assert_eq!(pod.metadata.namespace(), "zoo");
    assert_eq!(pod.metadata.annotations["podvisor.io/boot"], "machine");
    assert_eq!(pod.metadata.labels["app"], "pet");
    assert_eq!(
        pod.metadata.labels["statefulset.kubernetes.io/pod-name"],
        "pet-0"
    );
    let claim = pod.spec.volumes[0].persistent_volume_claim.as_ref();
    let name = &claim.unwrap().claim_name;
    assert_eq!(name.as_str(), "disk-pet-0");
    assert_eq!(objects.claims[name].bytes(), Some(8 << 30));
    assert_eq!(objects.claims[name].volume_mode, claim::VolumeMode::Block);
    let device = &pod.spec.containers[0].volume_devices[0];
    assert_eq!((device.name.as_str(), &*device.device_path), ("disk", "/"));
}

#[test]
fn what_only_controllers_do_is_refused() {
    let more = SET.replace("replicas: 1", "replicas: 3");
    let error = Manifest::parse(&more).unwrap_err().to_string();
    assert_eq!(error, "spec.replicas: 3: not supported by podvisor run");
    let never = SET.replace(
        "      containers:",
        "      restartPolicy: Never\n      containers:",
    );
    let error = Manifest::parse(&never).unwrap_err().to_string();
    assert!(error.contains("a StatefulSet takes Always"), "{error}");
    let service = SET.replace("clusterIP: None, ", "");
    let error = Manifest::parse(&service).unwrap_err().to_string();
    assert!(error.contains("spec.clusterIP"), "{error}");
}

#[test]
fn a_job_is_its_one_pod() {
    let job = |policy: &str, more: &str| {
        format!(
            "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: build}}\nspec:\n  \
             {more}\n  template:\n    spec:\n      restartPolicy: {policy}\n      \
             containers: [{{name: a, image: i}}]\n"
        )
    };
    let pod = Manifest::parse(&job("Never", "backoffLimit: 0"))
        .unwrap()
        .pod;
    assert_eq!(pod.metadata.name.as_str(), "build-0");
    assert_eq!(pod.spec.restart_policy, RestartPolicy::Never);
    assert_eq!(pod.metadata.labels["batch.kubernetes.io/job-name"], "build");
    for (policy, more, part) in [
        ("Always", "completions: 1", "OnFailure or Never"),
        ("Never", "backoffLimit: 4", "spec.backoffLimit: 4"),
        ("Never", "parallelism: 2", "spec.parallelism: 2"),
        ("Never", "suspend: true", "spec.suspend"),
    ] {
        let error = Manifest::parse(&job(policy, more)).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
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

#[test]
fn the_repositorys_examples_are_read_as_they_are() {
    for example in [
        include_str!("../../../runtimeclass/examples/hello.yaml"),
        include_str!("../../../runtimeclass/examples/machine.yaml"),
        include_str!("../../../runtimeclass/examples/machine-job.yaml"),
        include_str!("../../../runtimeclass/examples/pet.yaml"),
    ] {
        let pod = Manifest::parse(example).unwrap().pod;
        podvisor_annotations::Annotations::parse(&pod.metadata.annotations).unwrap();
    }
}

#[test]
fn a_pets_secret_is_a_file_of_its_volume_and_its_disk_is_claimed() {
    let pet = include_str!("../../../runtimeclass/examples/pet.yaml");
    let Manifest { pod, objects } = Manifest::parse(pet).unwrap();
    let secret = objects.secrets.values().next().unwrap();
    let (key, data) = secret.first_key_value().unwrap();
    assert_eq!(key.to_string(), "user-data");
    assert!(data.starts_with(b"#cloud-config\npassword: change me\n"));
    let volumes: Vec<_> = pod.spec.volumes.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(volumes, ["cloud-init", "disk"]);
    let claim = objects.claims.values().next().unwrap();
    assert_eq!(claim.bytes(), Some(4 << 30));
}
