//! A container.

use std::collections::HashMap;
use std::path::Path;

use podvisor_proto::cri::v1::{
    ContainerConfig, ContainerMetadata, Device, ImageSpec, LinuxContainerConfig, Mount,
    MountPropagation as CriPropagation,
};

use super::environment::Environment;
use super::{PodContext, TranslateError, qos, resources, security};
use crate::manifest::Manifest;
use crate::manifest::container::{Container, MountPropagation};
use crate::manifest::names::Name;
use crate::manifest::pod::kubernetes_labels;
use crate::manifest::volume::Volume;

/// The kubelet's annotation of how long a container has to end, in seconds (kubernetes,
/// `pkg/kubelet/kuberuntime/labels.go`).
const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";

/// An image that is on this machine.
#[derive(Clone, Debug)]
pub struct ReadyImage {
    /// The runtime's name for it.
    pub id: String,
    pub user: ImageUser,
}

/// As whom an image's command runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageUser {
    Uid(i64),
    Name(String),
}

/// What CreateContainer is asked for; `attempt` counts the container's restarts.
pub fn container_config(
    manifest: &Manifest,
    container: &Container,
    attempt: u32,
    image: &ReadyImage,
    context: &PodContext,
) -> Result<ContainerConfig, TranslateError> {
    let spec = &manifest.pod.spec;
    let environment = Environment::of(manifest, container, context)?;
    let expand = |words: &[String]| words.iter().map(|word| environment.expand(word)).collect();
    let name = container.name.to_string();
    let mut labels = kubernetes_labels(&manifest.pod.metadata, &context.uid);
    labels.insert("io.kubernetes.container.name".to_owned(), name.clone());
    let annotations = [
        ("io.kubernetes.container.restartCount", attempt.to_string()),
        (GRACE_PERIOD, spec.grace_period_seconds().to_string()),
    ];
    let resources =
        resources::of_container(&container.resources, qos(spec), context.node_memory_bytes);
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: name.clone(),
            attempt,
        }),
        image: Some(ImageSpec {
            image: image.id.clone(),
            user_specified_image: container.image.clone(),
            ..ImageSpec::default()
        }),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        mounts: mounts(&spec.volumes, container, context)?,
        devices: devices(&spec.volumes, container, context)?,
        labels: labels.into_iter().collect(),
        annotations: annotations
            .map(|(key, value)| (key.to_owned(), value))
            .into(),
        log_path: log_path(&name, attempt),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        linux: Some(LinuxContainerConfig {
            resources: Some(resources),
            security_context: Some(security::of_container(spec, container, &image.user)?),
        }),
        envs: environment.into_cri(),
        ..ContainerConfig::default()
    })
}

/// How many seconds a container that was made so has to end, by its annotations.
pub fn grace_period_seconds(annotations: &HashMap<String, String>) -> Option<i64> {
    annotations.get(GRACE_PERIOD)?.parse().ok()
}

/// A container's log file, below the pod's folder of logs.
fn log_path(name: &str, attempt: u32) -> String {
    format!("{name}/{attempt}.log")
}

fn mounts(
    volumes: &[Volume],
    container: &Container,
    context: &PodContext,
) -> Result<Vec<Mount>, TranslateError> {
    let mut mounts = Vec::new();
    for mount in &container.volume_mounts {
        let path = place_of(&mount.name, container, context)?;
        let propagation = match mount.mount_propagation {
            MountPropagation::None => CriPropagation::PropagationPrivate,
            MountPropagation::HostToContainer => CriPropagation::PropagationHostToContainer,
            MountPropagation::Bidirectional => CriPropagation::PropagationBidirectional,
        };
        mounts.push(Mount {
            container_path: absolute(&mount.mount_path),
            host_path: path,
            readonly: mount.read_only || is_read_only(volumes, &mount.name),
            propagation: propagation.into(),
            ..Mount::default()
        });
    }
    let own_hosts = mounts
        .iter()
        .any(|mount| mount.container_path == "/etc/hosts");
    if let Some(hosts) = context.hosts_file.as_ref().filter(|_| !own_hosts) {
        mounts.push(Mount {
            container_path: "/etc/hosts".to_owned(),
            host_path: hosts.display().to_string(),
            ..Mount::default()
        });
    }
    Ok(mounts)
}

/// Block volumes, as the kubelet asks for them.
fn devices(
    volumes: &[Volume],
    container: &Container,
    context: &PodContext,
) -> Result<Vec<Device>, TranslateError> {
    let devices = container.volume_devices.iter().map(|device| {
        let permissions = match is_read_only(volumes, &device.name) {
            true => "r",
            false => "mrw",
        };
        Ok(Device {
            container_path: device.device_path.clone(),
            host_path: place_of(&device.name, container, context)?,
            permissions: permissions.to_owned(),
        })
    });
    devices.collect()
}

/// Where a container's volume is on this machine.
fn place_of(
    name: &Name,
    container: &Container,
    context: &PodContext,
) -> Result<String, TranslateError> {
    let path = context.volumes.get(name);
    let path = path.map(|path| path.display().to_string());
    path.ok_or_else(|| TranslateError::UnknownVolume {
        container: container.name.to_string(),
        volume: name.to_string(),
    })
}

/// The kubelet reads a relative mount path from the root.
fn absolute(path: &str) -> String {
    Path::new("/").join(path).display().to_string()
}

/// Whether no container may write: the kubelet writes the volume's content, or it is claimed so.
fn is_read_only(volumes: &[Volume], name: &Name) -> bool {
    let volume = volumes.iter().find(|volume| volume.name == *name);
    volume.is_some_and(|volume| {
        let claim = volume.persistent_volume_claim.as_ref();
        volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.projected.is_some()
            || claim.is_some_and(|claim| claim.read_only)
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{context, manifest};
    use super::*;

    const SPEC: &str = "
  containers:
  - name: app
    image: busybox
    command: [sh, -c, echo $(WHO)]
    args: [$(UNSET)]
    workingDir: /tmp
    env: [{name: WHO, value: world}]
    volumeMounts: [{name: data, mountPath: data, readOnly: true}]
    tty: true
  volumes: [{name: data}]
";

    fn image() -> ReadyImage {
        ReadyImage {
            id: "sha256:1".into(),
            user: ImageUser::Uid(0),
        }
    }

    fn config(spec: &str, context: &PodContext) -> Result<ContainerConfig, TranslateError> {
        let manifest = manifest(spec, "");
        container_config(
            &manifest,
            &manifest.pod.spec.containers[0],
            3,
            &image(),
            context,
        )
    }

    #[test]
    fn a_container_carries_its_command_and_volumes() {
        let mut context = context();
        let name = manifest(SPEC, "").pod.spec.volumes[0].name.clone();
        context.volumes.insert(name, "/pods/1/data".into());
        context.hosts_file = Some("/pods/1/etc-hosts".into());
        let config = config(SPEC, &context).unwrap();
        assert_eq!(config.command, ["sh", "-c", "echo world"]);
        assert_eq!(config.args, ["$(UNSET)"]);
        assert_eq!(grace_period_seconds(&config.annotations), Some(30));
        assert_eq!(config.metadata.unwrap().attempt, 3);
        assert_eq!(config.log_path, "app/3.log");
        assert_eq!(config.image.unwrap().image, "sha256:1");
        assert!(config.tty);
        let paths: Vec<_> = config
            .mounts
            .iter()
            .map(|m| (m.container_path.as_str(), m.host_path.as_str(), m.readonly))
            .collect();
        assert_eq!(
            paths,
            [
                ("/data", "/pods/1/data", true),
                ("/etc/hosts", "/pods/1/etc-hosts", false)
            ]
        );
    }

    #[test]
    fn block_volumes_are_devices() {
        let spec = "
  containers:
  - name: machine
    image: debian
    volumeDevices: [{name: disk, devicePath: /}, {name: data, devicePath: /data}]
  volumes:
  - {name: disk, persistentVolumeClaim: {claimName: a}}
  - {name: data, persistentVolumeClaim: {claimName: b, readOnly: true}}
";
        let mut context = context();
        for (volume, path) in manifest(spec, "")
            .pod
            .spec
            .volumes
            .iter()
            .zip(["/dev/loop1", "/dev/loop2"])
        {
            context.volumes.insert(volume.name.clone(), path.into());
        }
        let devices = config(spec, &context).unwrap().devices;
        let devices: Vec<_> = devices
            .iter()
            .map(|d| (&*d.container_path, &*d.host_path, &*d.permissions))
            .collect();
        assert_eq!(
            devices,
            [("/", "/dev/loop1", "mrw"), ("/data", "/dev/loop2", "r")]
        );
    }

    #[test]
    fn a_mount_of_no_volume_is_refused() {
        let error = config(SPEC, &context()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "container app: volume data is not among the pod's"
        );
    }
}
