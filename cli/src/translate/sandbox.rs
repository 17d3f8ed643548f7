//! The pod itself.

use podvisor_proto::cri::v1::{
    LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping,
    Protocol as CriProtocol,
};

use super::{PodContext, TranslateError, dns, resources, security};
use crate::manifest::container::{Container, Port, Protocol};
use crate::manifest::pod::{Pod, kubernetes_labels};

/// Label of the pods that `podvisor run` made.
pub const MANAGED_LABEL: (&str, &str) = ("podvisor.io/managed-by", "podvisor-run");

/// What RunPodSandbox is asked for.
pub fn sandbox_config(pod: &Pod, context: &PodContext) -> Result<PodSandboxConfig, TranslateError> {
    let metadata = &pod.metadata;
    let mut labels = metadata.labels.clone();
    labels.extend(kubernetes_labels(metadata, &context.uid));
    labels.insert(MANAGED_LABEL.0.to_owned(), MANAGED_LABEL.1.to_owned());
    let sysctls = pod.spec.security_context.sysctls.iter();
    Ok(PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: metadata.name.to_string(),
            uid: context.uid.clone(),
            namespace: metadata.namespace().to_owned(),
            attempt: 0,
        }),
        hostname: if pod.spec.host_network {
            String::new()
        } else {
            context.hostname.clone()
        },
        log_directory: context.log_directory.display().to_string(),
        dns_config: dns::dns_config(&pod.spec, &context.resolv_conf),
        port_mappings: pod.spec.containers.iter().flat_map(port_mappings).collect(),
        labels: labels.into_iter().collect(),
        annotations: metadata.annotations.clone().into_iter().collect(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: context.cgroup_parent.clone(),
            security_context: Some(security::of_sandbox(&pod.spec)?),
            sysctls: sysctls
                .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
                .collect(),
            overhead: Some(resources::of_overhead(&context.overhead)),
            resources: Some(resources::of_sandbox(&pod.spec)),
        }),
    })
}

fn port_mappings(container: &Container) -> impl Iterator<Item = PortMapping> {
    container.ports.iter().map(|port: &Port| {
        let protocol = match port.protocol {
            Protocol::Tcp => CriProtocol::Tcp,
            Protocol::Udp => CriProtocol::Udp,
            Protocol::Sctp => CriProtocol::Sctp,
        };
        PortMapping {
            protocol: protocol.into(),
            container_port: i32::from(port.container_port),
            host_port: i32::from(port.host_port),
            host_ip: port.host_ip.clone(),
        }
    })
}

/// The /etc/hosts of the pod's containers, as the kubelet writes it.
pub fn hosts_file(pod: &Pod, context: &PodContext) -> String {
    let mut lines = vec![
        "127.0.0.1\tlocalhost".to_owned(),
        "::1\tlocalhost ip6-localhost ip6-loopback".to_owned(),
        "fe00::0\tip6-localnet".to_owned(),
        "fe00::0\tip6-mcastprefix".to_owned(),
        "fe00::1\tip6-allnodes".to_owned(),
        "fe00::2\tip6-allrouters".to_owned(),
    ];
    lines.extend(
        context
            .ips
            .iter()
            .map(|ip| format!("{ip}\t{}", context.hostname)),
    );
    let aliases = pod.spec.host_aliases.iter();
    lines.extend(aliases.map(|alias| format!("{}\t{}", alias.ip, alias.hostnames.join("\t"))));
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{context, manifest};
    use super::*;

    #[test]
    fn the_sandbox_carries_identity_limits_and_annotations() {
        let pod = manifest(
            "  containers: [{name: a, image: i, resources: {limits: {cpu: 2, memory: 128Mi}}, \
             ports: [{containerPort: 80, hostPort: 8080, name: http}]}]",
            "",
        )
        .pod;
        let config = sandbox_config(&pod, &context()).unwrap();
        assert_eq!(config.metadata.unwrap().uid, "uid-1");
        assert_eq!(config.annotations["podvisor.io/cpus"], "2");
        assert_eq!(config.labels["app"], "shop");
        assert_eq!(config.labels["io.kubernetes.pod.name"], "web");
        assert_eq!(
            (
                config.port_mappings[0].container_port,
                config.port_mappings[0].host_port
            ),
            (80, 8080)
        );
        let linux = config.linux.unwrap();
        assert_eq!(linux.resources.unwrap().memory_limit_in_bytes, 128 << 20);
        assert_eq!(linux.cgroup_parent, "/kubepods/poduid-1");
    }

    #[test]
    fn the_hosts_file_has_the_pod_and_its_aliases() {
        let pod = manifest(
            "  containers: [{name: a, image: i}]\n  hostAliases: [{ip: 1.2.3.4, hostnames: [db, cache]}]",
            "",
        )
        .pod;
        let hosts = hosts_file(&pod, &context());
        assert!(
            hosts.contains("10.88.0.2\tweb\nfd00:88::2\tweb\n1.2.3.4\tdb\tcache\n"),
            "{hosts}"
        );
    }

    #[test]
    fn a_pod_of_the_hosts_network_has_no_hostname_of_its_own() {
        let pod = manifest(
            "  containers: [{name: a, image: i}]\n  hostNetwork: true",
            "",
        )
        .pod;
        assert_eq!(sandbox_config(&pod, &context()).unwrap().hostname, "");
    }
}
