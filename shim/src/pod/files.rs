//! The files that every container of a pod shares where containerd writes none (its sandboxer is
//! "shim"): host name, hosts and resolver configuration.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use podvisor_proto::containerd::pod_config::{DnsConfig, PodSandboxConfig};
use serde::{Deserialize, Serialize};

use super::volume::{POD_SHARED_MEMORY, SHARED_MEMORY};

/// Name within the folder, and the place in a container.
const FILES: [(&str, &str); 3] = [
    (HOSTNAME, "/etc/hostname"),
    (HOSTS, "/etc/hosts"),
    (RESOLV_CONF, "/etc/resolv.conf"),
];
/// The pod's host name.
pub const HOSTNAME: &str = "hostname";
/// Names and addresses (hosts(5)).
pub const HOSTS: &str = "hosts";
/// The resolver's configuration (resolv.conf(5)).
pub const RESOLV_CONF: &str = "resolv.conf";

/// A pod's files, to be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFiles {
    /// The folder that they are in.
    pub folder: PathBuf,
    /// The pod's host name.
    pub hostname: String,
    /// Content of resolv.conf; None for the host's own.
    pub resolv_conf: Option<String>,
}

impl PodFiles {
    /// The files of a pod, in `folder`.
    pub fn of_pod(config: &PodSandboxConfig, folder: PathBuf) -> Self {
        Self {
            folder,
            hostname: config.hostname.clone(),
            resolv_conf: config.dns_config.as_ref().and_then(resolv_conf),
        }
    }

    /// Gives a container those of the files that nobody else has mounted: containerd leaves out
    /// what it has not written itself (`internal/cri/server/container_create.go`).
    pub fn place(&self, spec: &mut Spec) {
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        let access = if is_read_only(spec) { "ro" } else { "rw" };
        for (name, destination) in FILES {
            let destination = Path::new(destination);
            if !is_mounted(&mounts, destination) {
                let mut mount = bind(&self.folder.join(name), destination, access);
                let linux = spec.linux().as_ref();
                mount.set_uid_mappings(linux.and_then(|linux| linux.uid_mappings().clone()));
                mount.set_gid_mappings(linux.and_then(|linux| linux.gid_mappings().clone()));
                mounts.push(mount);
            }
        }
        share_memory(&mut mounts);
        spec.set_mounts(Some(mounts));
    }
}

fn is_mounted(mounts: &[Mount], destination: &Path) -> bool {
    mounts
        .iter()
        .any(|mount| mount.destination() == destination)
}

/// Gives a container the pod's shared memory in place of its own, which it has where containerd
/// has made none for the pod. A volume there stays.
fn share_memory(mounts: &mut Vec<Mount>) {
    let own = |mount: &Mount| {
        mount.destination() == Path::new(SHARED_MEMORY) && mount.typ().as_deref() != Some("bind")
    };
    mounts.retain(|mount| !own(mount));
    if !is_mounted(mounts, Path::new(SHARED_MEMORY)) {
        mounts.push(bind(
            Path::new(POD_SHARED_MEMORY),
            Path::new(SHARED_MEMORY),
            "rw",
        ));
    }
}

fn bind(source: &Path, destination: &Path, access: &str) -> Mount {
    let options = ["rbind", "rprivate", access].map(str::to_owned);
    let mut mount = Mount::default();
    mount.set_destination(destination.to_owned());
    mount.set_typ(Some("bind".to_owned()));
    mount.set_source(Some(source.to_owned()));
    mount.set_options(Some(options.to_vec()));
    mount
}

fn is_read_only(spec: &Spec) -> bool {
    let root = spec.root().as_ref();
    root.and_then(|root| root.readonly()).unwrap_or_default()
}

/// None when the pod names no server, no domain and no option.
fn resolv_conf(dns: &DnsConfig) -> Option<String> {
    let mut lines = Vec::new();
    if !dns.searches.is_empty() {
        lines.push(format!("search {}\n", dns.searches.join(" ")));
    }
    lines.extend(
        dns.servers
            .iter()
            .map(|server| format!("nameserver {server}\n")),
    );
    if !dns.options.is_empty() {
        lines.push(format!("options {}\n", dns.options.join(" ")));
    }
    (!lines.is_empty()).then(|| lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> PodFiles {
        PodFiles {
            folder: "/b/files".into(),
            hostname: "web".into(),
            resolv_conf: None,
        }
    }

    #[test]
    fn what_nobody_mounts_is_mounted_and_a_pods_own_stays() {
        let mut spec: Spec = serde_json::from_str(
            r#"{"ociVersion":"1.1.0","root":{"path":"rootfs","readonly":true},"mounts":[
                {"destination":"/etc/hosts","type":"bind","source":"/var/lib/kubelet/pods/p/etc-hosts"}]}"#,
        )
        .unwrap();
        files().place(&mut spec);
        let mounts = spec.mounts().clone().unwrap();
        let source = |destination: &str| {
            let mount = mounts
                .iter()
                .find(|mount| mount.destination() == Path::new(destination));
            mount.unwrap().source().clone().unwrap()
        };
        assert_eq!(
            source("/etc/hosts"),
            Path::new("/var/lib/kubelet/pods/p/etc-hosts")
        );
        assert_eq!(
            source("/etc/resolv.conf"),
            Path::new("/b/files/resolv.conf")
        );
        assert_eq!(source("/etc/hostname"), Path::new("/b/files/hostname"));
        let added = mounts
            .iter()
            .find(|mount| mount.destination() == Path::new("/etc/hostname"));
        assert!(
            added
                .unwrap()
                .options()
                .clone()
                .unwrap()
                .contains(&"ro".to_owned())
        );
    }

    #[test]
    fn memory_is_the_pods_unless_a_volume_is_there() {
        for mount in [
            "",
            r#"{"destination":"/dev/shm","type":"tmpfs","source":"shm"}"#,
            r#"{"destination":"/dev/shm","type":"bind","source":"/volume"}"#,
        ] {
            let json = format!(r#"{{"ociVersion":"1.1.0","mounts":[{mount}]}}"#);
            let mut spec: Spec = serde_json::from_str(&json).unwrap();
            files().place(&mut spec);
            let mounts = spec.mounts().clone().unwrap();
            let at: Vec<_> = mounts
                .iter()
                .filter(|mount| mount.destination() == Path::new("/dev/shm"))
                .collect();
            assert_eq!(at.len(), 1);
            assert_eq!(at[0].typ().as_deref(), Some("bind"));
            let expected = if mount.contains("/volume") {
                "/volume"
            } else {
                POD_SHARED_MEMORY
            };
            assert_eq!(at[0].source().as_deref(), Some(Path::new(expected)));
        }
    }

    #[test]
    fn resolv_conf_keeps_search_domains_and_options() {
        let dns = DnsConfig {
            servers: vec!["10.96.0.10".into(), "fd00::a".into()],
            searches: vec!["a.test".into(), "b.test".into()],
            options: vec!["ndots:5".into()],
        };
        let expected =
            "search a.test b.test\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5\n";
        assert_eq!(resolv_conf(&dns).as_deref(), Some(expected));
        assert_eq!(resolv_conf(&DnsConfig::default()), None);
    }
}
