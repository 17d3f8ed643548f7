//! A pod on the node, made the way the kubelet makes one.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use podvisor_proto::cri::v1::{
    DnsConfig, LinuxContainerResources, LinuxPodSandboxStats, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PodSandboxStatsRequest,
    PodSandboxStatusRequest, PodSandboxStatusResponse, PortMapping, Protocol,
    RemovePodSandboxRequest, RunPodSandboxRequest, RuntimeHandlerFeatures, StatusRequest,
    StopPodSandboxRequest, UInt64Value,
};

use crate::container_builder::ContainerBuilder;
use crate::cri::Cri;
use crate::pod_cgroup::PodCgroup;

/// Room in a VM pod's cgroup beyond its containers' limits, as a RuntimeClass's overhead.
const OVERHEAD_BYTES: i64 = 256 << 20;
/// Where containerd has the bundles of tasks and of sandboxes.
const BUNDLES: [&str; 2] = [
    "/run/containerd/io.containerd.runtime.v2.task/k8s.io",
    "/run/containerd/io.containerd.sandbox.controller.v1.shim/k8s.io",
];
/// The period of CPU quotas in microseconds, Kubernetes' default.
pub const CPU_PERIOD_US: i64 = 100_000;

static NEXT: AtomicU32 = AtomicU32::new(0);
/// The variable that names the handler of VM pods, where it is not `podvisor`.
const HANDLER_VARIABLE: &str = "PODVISOR_HANDLER";
/// The handler of VM pods for the running case, when it is not the suite's.
static HANDLER: Mutex<Option<&'static str>> = Mutex::new(None);

/// Which runtime handler runs a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// A virtual machine a pod: ours.
    Podvisor,
    /// Plain runc, the neighbour and the measure.
    Runc,
    /// Another handler of the node's containerd configuration.
    Named(&'static str),
}

impl Handler {
    fn name(self) -> Cow<'static, str> {
        match self {
            Self::Podvisor => Self::of_vm_pods(),
            Self::Runc => "".into(),
            Self::Named(name) => name.into(),
        }
    }

    /// What containerd tells the kubelet that the handler can.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn features(self, cri: &Cri) -> Result<RuntimeHandlerFeatures> {
        let request = StatusRequest::default();
        let status = cri.call("Status", |mut c| async move { c.status(request).await })?;
        let mut handlers = status.runtime_handlers.into_iter();
        let handler = handlers.find(|handler| handler.name == self.name());
        Ok(handler.and_then(|it| it.features).unwrap_or_default())
    }

    fn of_vm_pods() -> Cow<'static, str> {
        let chosen = HANDLER.lock().unwrap_or_else(PoisonError::into_inner);
        match *chosen {
            Some(name) => name.into(),
            None => std::env::var(HANDLER_VARIABLE).map_or("podvisor".into(), Cow::Owned),
        }
    }

    /// Lets `work` make its VM pods with another handler of the node's containerd configuration.
    pub fn with_vm_pods_of<T>(name: &'static str, work: impl FnOnce() -> T) -> T {
        let choose = |name| *HANDLER.lock().unwrap_or_else(PoisonError::into_inner) = name;
        choose(Some(name));
        let done = work();
        choose(None);
        done
    }
}

/// What a pod is to be.
pub struct PodBuilder<'c> {
    cri: &'c Cri,
    handler: Handler,
    name: String,
    config: PodSandboxConfig,
    memory_bytes: i64,
    cpu_quota_us: i64,
    plain: bool,
}

impl<'c> PodBuilder<'c> {
    /// A pod named after `name`, made unique.
    pub fn new(cri: &'c Cri, handler: Handler, name: &str) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{name}-{}-{number}", std::process::id());
        let metadata = PodSandboxMetadata {
            name: name.clone(),
            uid: format!("uid-{name}"),
            namespace: "default".into(),
            attempt: 0,
        };
        let config = PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.clone(),
            dns_config: Some(DnsConfig {
                servers: vec!["10.96.0.10".into()],
                searches: vec!["default.svc.cluster.local".into()],
                options: vec!["ndots:5".into()],
            }),
            ..PodSandboxConfig::default()
        };
        Self {
            cri,
            handler,
            name,
            config,
            memory_bytes: 128 << 20,
            cpu_quota_us: CPU_PERIOD_US,
            plain: false,
        }
    }

    /// A pod that says nothing but its name, as the CRI validation suite makes them: no control
    /// group of the kubelet's, no limits, no host name, no DNS.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.config.hostname.clear();
        self.config.dns_config = None;
        self.plain = true;
        self
    }

    /// A pod that is called `name`, as whoever was called so before was.
    #[must_use]
    pub fn called(mut self, name: &str) -> Self {
        if let Some(metadata) = &mut self.config.metadata {
            metadata.name = name.into();
        }
        self.config.hostname = name.into();
        self
    }

    /// Another attempt of a pod.
    #[must_use]
    pub fn attempt_of(mut self, pod: &Pod<'_>, attempt: u32) -> Self {
        self.config.metadata = pod.config.metadata.clone();
        if let Some(metadata) = &mut self.config.metadata {
            metadata.attempt = attempt;
        }
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.config.labels.insert(key.into(), value.into());
        self
    }

    /// Sets name servers and search domains.
    #[must_use]
    pub fn dns(mut self, servers: &[&str], searches: &[&str]) -> Self {
        let dns = self.config.dns_config.get_or_insert_default();
        dns.servers = servers.iter().map(ToString::to_string).collect();
        dns.searches = searches.iter().map(ToString::to_string).collect();
        self
    }

    /// Adds a pod annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.config.annotations.insert(key.into(), value.into());
        self
    }

    /// The sum of the containers' memory limits, in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: i64) -> Self {
        self.memory_bytes = mib << 20;
        self
    }

    /// The sum of the containers' CPU limits.
    #[must_use]
    pub fn cpus(mut self, cpus: i64) -> Self {
        self.cpu_quota_us = cpus * CPU_PERIOD_US;
        self
    }

    /// Leads a TCP port of the node to one of the pod.
    #[must_use]
    pub fn host_port(mut self, host: u16, container: u16) -> Self {
        self.config.port_mappings.push(PortMapping {
            protocol: Protocol::Tcp.into(),
            host_port: host.into(),
            container_port: container.into(),
            ..PortMapping::default()
        });
        self
    }

    /// Sets a kernel parameter of the pod.
    #[must_use]
    pub fn sysctl(mut self, name: &str, value: &str) -> Self {
        let linux = self.config.linux.get_or_insert_default();
        linux.sysctls.insert(name.into(), value.into());
        self
    }

    /// Asks for the node's own network.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.security_context().namespace_options = Some(NamespaceOption {
            network: NamespaceMode::Node.into(),
            ..NamespaceOption::default()
        });
        self
    }

    /// Allows privileged containers.
    #[must_use]
    pub fn privileged(mut self) -> Self {
        self.security_context().privileged = true;
        self
    }

    /// Changes the pod's security context.
    #[must_use]
    pub fn security(mut self, change: impl FnOnce(&mut LinuxSandboxSecurityContext)) -> Self {
        change(self.security_context());
        self
    }

    fn security_context(&mut self) -> &mut LinuxSandboxSecurityContext {
        let linux = self.config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default()
    }

    /// Makes the pod's cgroup and folder and runs its sandbox.
    ///
    /// # Errors
    /// What containerd answered, or what could not be made on the node.
    pub fn run(mut self) -> Result<Pod<'c>> {
        let folder = PathBuf::from("/var/lib/podvisor-tests").join(&self.name);
        fs::create_dir_all(folder.join("logs"))?;
        self.config.log_directory = folder.join("logs").display().to_string();
        let cgroup = if self.plain {
            self.config.linux.get_or_insert_default();
            None
        } else {
            Some(self.limit()?)
        };
        let request = RunPodSandboxRequest {
            config: Some(self.config.clone()),
            runtime_handler: self.handler.name().into_owned(),
        };
        let answer = self.cri.call("RunPodSandbox", |mut c| async move {
            c.run_pod_sandbox(request).await
        });
        match answer {
            Ok(answer) => Ok(Pod {
                cri: self.cri,
                id: answer.pod_sandbox_id,
                config: self.config,
                folder,
                cgroup,
            }),
            Err(error) => {
                fs::remove_dir_all(&folder)?;
                Err(error)
            }
        }
    }

    /// Makes the pod's cgroup, as the kubelet does, and says so in the pod's configuration.
    fn limit(&mut self) -> Result<PodCgroup> {
        let cgroup = PodCgroup::create(&self.name, self.memory_bytes + OVERHEAD_BYTES)?;
        let linux = self.config.linux.get_or_insert_default();
        linux.cgroup_parent = cgroup.parent();
        linux.resources = Some(LinuxContainerResources {
            cpu_period: CPU_PERIOD_US,
            cpu_quota: self.cpu_quota_us,
            memory_limit_in_bytes: self.memory_bytes,
            ..LinuxContainerResources::default()
        });
        linux.overhead = Some(LinuxContainerResources {
            memory_limit_in_bytes: OVERHEAD_BYTES,
            ..LinuxContainerResources::default()
        });
        Ok(cgroup)
    }
}

/// A running pod; stopped and removed when dropped.
pub struct Pod<'c> {
    pub(crate) cri: &'c Cri,
    /// The sandbox's id.
    pub id: String,
    pub(crate) config: PodSandboxConfig,
    folder: PathBuf,
    cgroup: Option<PodCgroup>,
}

impl<'c> Pod<'c> {
    /// A container of this pod, yet to be made.
    #[must_use]
    pub fn container(&self, name: &str) -> ContainerBuilder<'_, 'c> {
        ContainerBuilder::new(self, name)
    }

    /// Gives the pod's cgroup room for containers with `mib` MiB in all, as the kubelet does before it changes
    /// one of them.
    ///
    /// # Errors
    /// When it cannot be changed, or there is none.
    pub fn allow_memory_mib(&self, mib: i64) -> Result<()> {
        let cgroup = self.cgroup.as_ref().context("the pod has no cgroup")?;
        cgroup.set_memory_max((mib << 20) + OVERHEAD_BYTES)
    }

    /// What the pod was asked to be.
    #[must_use]
    pub fn config(&self) -> &PodSandboxConfig {
        &self.config
    }

    /// The pod's host name.
    #[must_use]
    pub fn hostname(&self) -> &str {
        &self.config.hostname
    }

    /// Makes a folder on the node that lives as long as the pod, for volumes.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn volume(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join("volumes").join(name);
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Where the logs of the pod's containers are.
    #[must_use]
    pub fn log_folder(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// What containerd knows of the pod, verbose.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn status(&self) -> Result<PodSandboxStatusResponse> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: self.id.clone(),
            verbose: true,
        };
        self.cri.call("PodSandboxStatus", |mut c| async move {
            c.pod_sandbox_status(request).await
        })
    }

    /// What the pod uses, as CRI reports it.
    ///
    /// # Errors
    /// What containerd answered, or an answer without statistics of Linux.
    pub fn stats(&self) -> Result<LinuxPodSandboxStats> {
        let request = PodSandboxStatsRequest {
            pod_sandbox_id: self.id.clone(),
        };
        let answer = self.cri.call("PodSandboxStats", |mut c| async move {
            c.pod_sandbox_stats(request).await
        })?;
        let stats = answer.stats.context("PodSandboxStats: no stats")?;
        stats.linux.context("PodSandboxStats: none of Linux")
    }

    /// The pod's addresses, the primary one first.
    ///
    /// # Errors
    /// When the pod has none.
    pub fn addresses(&self) -> Result<Vec<String>> {
        let status = self
            .status()?
            .status
            .context("PodSandboxStatus: no status")?;
        let network = status.network.context("the pod has no network")?;
        let mut addresses = vec![network.ip];
        addresses.extend(network.additional_ips.into_iter().map(|ip| ip.ip));
        Ok(addresses)
    }

    /// Bytes that the pod's first interface has received and sent, as CRI reports them.
    ///
    /// # Errors
    /// What containerd answered, or that it says nothing of the network.
    pub fn network_bytes(&self) -> Result<(u64, u64)> {
        let request = PodSandboxStatsRequest {
            pod_sandbox_id: self.id.clone(),
        };
        let answer = self.cri.call("PodSandboxStats", |mut c| async move {
            c.pod_sandbox_stats(request).await
        })?;
        let network = answer.stats.and_then(|stats| stats.linux?.network);
        let interface = network.and_then(|network| network.default_interface);
        let interface = interface.context("PodSandboxStats: no network")?;
        let value = |value: Option<UInt64Value>| value.unwrap_or_default().value;
        Ok((value(interface.rx_bytes), value(interface.tx_bytes)))
    }

    /// The folder that the pod's shim works in.
    #[must_use]
    pub fn bundle(&self) -> PathBuf {
        // A pod of containerd's sandboxer "shim" is no task.
        let folders = BUNDLES.map(|folder| Path::new(folder).join(&self.id));
        let [task, sandbox] = folders;
        if task.exists() { task } else { sandbox }
    }

    /// The process that is the pod's shim and VMM.
    ///
    /// # Errors
    /// When there is none.
    pub fn shim_pid(&self) -> Result<i32> {
        let pid = fs::read_dir("/proc")?.flatten().find_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let words = fs::read(entry.path().join("cmdline")).ok()?;
            let words = String::from_utf8_lossy(&words).into_owned();
            let ours = words.contains("containerd-shim-podvisor") && words.contains(&self.id);
            ours.then_some(pid)
        });
        pid.with_context(|| format!("no shim of pod {}", self.id))
    }

    /// The group of the cgroup tree that the pod's shim is in.
    ///
    /// # Errors
    /// When there is no shim.
    pub fn server_cgroup(&self) -> Result<PathBuf> {
        let file = format!("/proc/{}/cgroup", self.shim_pid()?);
        let text = fs::read_to_string(&file)?;
        let path = text.trim().strip_prefix("0::/");
        let path = path.with_context(|| format!("{file}: {text:?}"))?;
        Ok(Path::new("/sys/fs/cgroup").join(path))
    }

    /// Stops the pod.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn stop(&self) -> Result<()> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        self.cri
            .call("StopPodSandbox", |mut c| async move {
                c.stop_pod_sandbox(request).await
            })
            .map(drop)
    }

    /// Stops and removes the pod with all its containers.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn remove(&self) -> Result<()> {
        self.stop()?;
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        self.cri
            .call("RemovePodSandbox", |mut c| async move {
                c.remove_pod_sandbox(request).await
            })
            .map(drop)
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("pod {} is not removed: {error:#}", self.id);
        }
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{} is not removed: {error}", self.folder.display());
        }
    }
}
