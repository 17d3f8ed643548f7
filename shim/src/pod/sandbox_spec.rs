//! A pod's spec where containerd writes none (its sandboxer is "shim"): the pod's configuration as
//! CRI sends it becomes the spec that containerd's own sandboxer would have written
//! (containerd, `internal/cri/server/podsandbox/sandbox_run_linux.go`), so that all that follows
//! knows one form of a pod.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Linux, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceType, Process, Spec,
};
use podvisor_proto::containerd::pod_config::{
    IdMapping, LinuxPodSandboxConfig, NamespaceMode, NamespaceOption, PodSandboxConfig,
    UserNamespace,
};

use super::bundle::{
    CONTAINER_TYPE, SANDBOX_CPU_PERIOD, SANDBOX_CPU_QUOTA, SANDBOX_ID, SANDBOX_MEMORY,
};
use podvisor_annotations::PREFIX;

/// How likely containerd lets a pod's own process be taken when the host is out of memory.
const SANDBOX_OOM_SCORE: i32 = -998;
/// What containerd's names of systemd scopes begin with.
const SCOPE_PREFIX: &str = "cri-containerd";

/// The spec of pod `id`, whose network is the namespace at `network`; an empty path is the host's.
pub fn sandbox_spec(config: &PodSandboxConfig, id: &str, network: &Path) -> Spec {
    let none = LinuxPodSandboxConfig::default();
    let pod = config.linux.as_ref().unwrap_or(&none);
    let mut linux = Linux::default();
    linux.set_resources(None);
    linux.set_cgroups_path(cgroups_path(&pod.cgroup_parent, id));
    linux.set_sysctl(Some(pod.sysctls.clone()));
    linux.set_namespaces(Some(namespaces(pod, network)));
    if let Some(users) = users(pod) {
        linux.set_uid_mappings(Some(mappings(&users.uids)));
        linux.set_gid_mappings(Some(mappings(&users.gids)));
    }
    let mut process = Process::default();
    process.set_oom_score_adj(Some(SANDBOX_OOM_SCORE));
    let mut spec = Spec::default();
    spec.set_hostname(Some(config.hostname.clone()));
    spec.set_mounts(None);
    spec.set_process(Some(process));
    spec.set_linux(Some(linux));
    spec.set_annotations(Some(annotations(config, pod, id)));
    spec
}

/// The pod's annotations that are ours, all of which arrive here, and what containerd itself says
/// of a pod.
fn annotations(
    config: &PodSandboxConfig,
    pod: &LinuxPodSandboxConfig,
    id: &str,
) -> HashMap<String, String> {
    let ours = config.annotations.iter();
    let mut all: HashMap<String, String> = ours
        .filter(|(key, _)| key.starts_with(PREFIX))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let resources = pod.resources.clone().unwrap_or_default();
    for (key, value) in [
        (CONTAINER_TYPE, "sandbox".to_owned()),
        (SANDBOX_ID, id.to_owned()),
        (SANDBOX_MEMORY, resources.memory_limit_in_bytes.to_string()),
        (SANDBOX_CPU_QUOTA, resources.cpu_quota.to_string()),
        (SANDBOX_CPU_PERIOD, resources.cpu_period.to_string()),
    ] {
        all.insert(key.to_owned(), value);
    }
    all
}

/// A `linux.cgroupsPath` below the pod's group: none when the pod has no group.
fn cgroups_path(parent: &str, id: &str) -> Option<PathBuf> {
    if parent.is_empty() {
        return None;
    }
    match Path::new(parent).file_name().and_then(|name| name.to_str()) {
        Some(slice) if slice.ends_with(".slice") => {
            Some(format!("{slice}:{SCOPE_PREFIX}:{id}").into())
        }
        _ => Some(Path::new(parent).join(id)),
    }
}

fn namespaces(pod: &LinuxPodSandboxConfig, network: &Path) -> Vec<LinuxNamespace> {
    let none = NamespaceOption::default();
    let context = pod.security_context.as_ref();
    let options = context
        .and_then(|context| context.namespace_options.as_ref())
        .unwrap_or(&none);
    let own = |kind| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace
    };
    let mut namespaces = vec![own(LinuxNamespaceType::Mount)];
    if !network.as_os_str().is_empty() {
        let mut namespace = own(LinuxNamespaceType::Network);
        namespace.set_path(Some(network.to_owned()));
        namespaces.extend([namespace, own(LinuxNamespaceType::Uts)]);
    }
    if options.pid() != NamespaceMode::Node {
        namespaces.push(own(LinuxNamespaceType::Pid));
    }
    if options.ipc() != NamespaceMode::Node {
        namespaces.push(own(LinuxNamespaceType::Ipc));
    }
    if users(pod).is_some() {
        namespaces.push(own(LinuxNamespaceType::User));
    }
    namespaces
}

/// What the pod's users are outside, where they are others.
fn users(pod: &LinuxPodSandboxConfig) -> Option<&UserNamespace> {
    let context = pod.security_context.as_ref()?;
    let users = context
        .namespace_options
        .as_ref()?
        .userns_options
        .as_ref()?;
    (users.mode() == NamespaceMode::Pod).then_some(users)
}

fn mappings(ranges: &[IdMapping]) -> Vec<LinuxIdMapping> {
    let mapping = |range: &IdMapping| {
        let mapping = LinuxIdMappingBuilder::default()
            .container_id(range.container_id)
            .host_id(range.host_id)
            .size(range.length)
            .build();
        // Fails only where a number is left out.
        mapping.ok()
    };
    ranges.iter().filter_map(mapping).collect()
}

#[cfg(test)]
mod tests {
    use podvisor_proto::containerd::pod_config::{
        LinuxContainerResources, LinuxSandboxSecurityContext,
    };

    use super::*;
    use crate::pod::guest_spec::check_pod;
    use crate::pod::network::PodNetwork;
    use crate::pod::users::UserMaps;
    use crate::pod::{Bundle, Role};
    use podvisor_annotations::Annotations;

    fn config() -> PodSandboxConfig {
        PodSandboxConfig {
            hostname: "web".into(),
            annotations: [
                ("podvisor.io/cpus", "3"),
                ("io.kubernetes.cri.container-type", "container"),
                ("example.org/x", "y"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods/pod1".into(),
                resources: Some(LinuxContainerResources {
                    memory_limit_in_bytes: 256 << 20,
                    cpu_quota: 150_000,
                    cpu_period: 100_000,
                    ..LinuxContainerResources::default()
                }),
                sysctls: [("net.core.somaxconn".to_owned(), "7".to_owned())].into(),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        }
    }

    fn bundle(config: &PodSandboxConfig, network: &str) -> Bundle {
        Bundle {
            path: "/b".into(),
            spec: sandbox_spec(config, "id1", Path::new(network)),
        }
    }

    #[test]
    fn what_cri_says_of_a_pod_is_in_its_spec() {
        let bundle = bundle(&config(), "/run/netns/x");
        assert_eq!(bundle.role().unwrap(), Role::Sandbox);
        assert_eq!(bundle.oom_score(), -998);
        let limits = bundle.limits().unwrap();
        assert_eq!(limits.memory, Some(256 << 20));
        assert_eq!(limits.cpu_quota_us, Some(150_000));
        assert_eq!(bundle.spec.hostname().as_deref(), Some("web"));
        let linux = bundle.spec.linux().as_ref().unwrap();
        assert_eq!(
            linux.cgroups_path().as_deref(),
            Some(Path::new("/kubepods/pod1/id1"))
        );
        assert_eq!(linux.sysctl().as_ref().unwrap()["net.core.somaxconn"], "7");
        assert_eq!(
            PodNetwork::of_spec(&bundle.spec).unwrap(),
            PodNetwork::Namespace("/run/netns/x".into())
        );
        let annotations = bundle.spec.annotations().as_ref().unwrap();
        let ours = Annotations::parse(annotations).unwrap();
        assert_eq!(ours.cpus.unwrap().get(), 3);
        assert!(!annotations.contains_key("example.org/x"));
    }

    #[test]
    fn a_slice_is_a_scopes_parent() {
        assert_eq!(
            cgroups_path("/kubepods.slice/kubepods-pod1.slice", "id1"),
            Some("kubepods-pod1.slice:cri-containerd:id1".into())
        );
        assert_eq!(cgroups_path("", "id1"), None);
    }

    #[test]
    fn what_a_machine_cannot_share_with_the_host_is_refused_as_ever() {
        assert!(PodNetwork::of_spec(&bundle(&config(), "").spec).is_err());
        // Users without a map of them.
        assert!(check_pod(&with_users(Vec::new()).spec).is_err());
    }

    #[test]
    fn users_are_mapped_as_cri_says() {
        let map = vec![IdMapping {
            host_id: 1000,
            container_id: 0,
            length: 10,
        }];
        let spec = with_users(map).spec;
        check_pod(&spec).unwrap();
        let maps = UserMaps::of_pod(&spec).unwrap();
        assert_eq!(maps, UserMaps::of_options("0:1000:10", "0:1000:10"));
    }

    fn with_users(map: Vec<IdMapping>) -> Bundle {
        let mut users = config();
        let context = LinuxSandboxSecurityContext {
            namespace_options: Some(NamespaceOption {
                userns_options: Some(UserNamespace {
                    uids: map.clone(),
                    gids: map,
                    ..UserNamespace::default()
                }),
                ..NamespaceOption::default()
            }),
            ..LinuxSandboxSecurityContext::default()
        };
        users.linux.as_mut().unwrap().security_context = Some(context);
        bundle(&users, "/run/netns/x")
    }
}
