//! A pod on this machine, from its folder to its sandbox, and back to nothing.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::future::join_all;
use podvisor_proto::cri::v1::{Container, ContainerState, PodSandboxConfig};

use super::cgroup::PodCgroup;
use super::claims::{ClaimPath, Claims};
use super::class::Class;
use super::folder::PodFolder;
use super::machine;
use super::narrator::Narrator;
use super::timeline;
use crate::cri::Cri;
use crate::manifest::Manifest;
use crate::translate::{self, PodContext, pod_limits, qos};

/// Where the kubelet keeps the logs of pods.
const LOGS: &str = "/var/log/pods";
/// Longest hostname that the kernel takes.
const HOSTNAME_LEN_MAX: usize = 63;

/// A pod and what belongs to it on this machine.
pub struct Pod<'a> {
    pub cri: &'a Cri,
    pub manifest: &'a Manifest,
    pub context: PodContext,
    pub sandbox_config: PodSandboxConfig,
    /// Empty until the sandbox runs.
    pub sandbox: String,
    folder: PodFolder,
    /// Tells others that this pod is run, as long as this is.
    held: Option<File>,
    cgroup: PodCgroup,
    claims: Claims,
}

impl<'a> Pod<'a> {
    /// Works out what the pod is to be; nothing is made yet.
    pub fn plan(
        cri: &'a Cri,
        manifest: &'a Manifest,
        class: &Class,
        claims: &[ClaimPath],
    ) -> Result<Self> {
        let pod = &manifest.pod;
        let uid = match &pod.metadata.uid {
            Some(uid) => uid.to_string(),
            None => machine::new_uid()?,
        };
        let cgroup = PodCgroup::of(&uid, qos(&pod.spec));
        let logs = format!("{}_{}_{uid}", pod.metadata.namespace(), pod.metadata.name);
        let hostname = pod
            .spec
            .hostname
            .as_ref()
            .unwrap_or(&pod.metadata.name)
            .as_str();
        let mut context = PodContext {
            node_name: machine::node_name()?,
            hostname: hostname.chars().take(HOSTNAME_LEN_MAX).collect(),
            node_memory_bytes: machine::memory_bytes()?,
            resolv_conf: machine::resolv_conf(),
            log_directory: Path::new(LOGS).join(logs),
            cgroup_parent: cgroup.parent(),
            overhead: class.overhead,
            uid,
            ..PodContext::default()
        };
        if pod.spec.host_network {
            context.hostname.clone_from(&context.node_name);
        }
        let sandbox_config = translate::sandbox_config(pod, &context)?;
        let folder = PodFolder::of(&context.uid);
        Ok(Self {
            cri,
            manifest,
            context,
            sandbox_config,
            sandbox: String::new(),
            folder,
            held: None,
            cgroup,
            claims: Claims::new(claims),
        })
    }

    /// Makes the pod's folder, volumes and control group.
    pub fn prepare(&mut self) -> Result<()> {
        let spec = &self.manifest.pod.spec;
        self.held = Some(self.folder.create()?);
        for volume in &spec.volumes {
            let claim = volume.persistent_volume_claim.as_ref();
            let path = match claim.filter(|_| volume.sources() == 1) {
                Some(claim) => self.claims.prepare(&volume.name, claim, self.manifest),
                None => self.folder.create_volume(
                    volume,
                    &self.manifest.objects,
                    spec.security_context.fs_group,
                ),
            };
            let path = path.with_context(|| format!("volume {}", volume.name))?;
            self.context.volumes.insert(volume.name.clone(), path);
        }
        std::fs::create_dir_all(&self.context.log_directory)
            .with_context(|| format!("cannot make {}", self.context.log_directory.display()))?;
        self.cgroup.create(pod_limits(spec, &self.context.overhead))
    }

    /// Starts the sandbox, and writes down where it is.
    pub async fn start_sandbox(
        &mut self,
        handler: &str,
        socket: &Path,
        narrator: &Narrator,
    ) -> Result<()> {
        let began = Instant::now();
        self.sandbox = self.cri.run_sandbox(&self.sandbox_config, handler).await?;
        narrator.phase("sandbox ready", began.elapsed());
        for line in timeline::lines(&timeline::read(socket, &self.sandbox)) {
            narrator.note(&line);
        }
        let status = self.cri.sandbox_status(&self.sandbox).await?;
        if let Some(network) = status.network {
            let more = network.additional_ips.into_iter().map(|ip| ip.ip);
            self.context.ips = std::iter::once(network.ip)
                .chain(more)
                .filter(|ip| !ip.is_empty())
                .collect();
        }
        if !self.context.ips.is_empty() {
            narrator.note(&format!("addresses {}", self.context.ips.join(", ")));
        }
        if !self.manifest.pod.spec.host_network {
            let hosts = translate::hosts_file(&self.manifest.pod, &self.context);
            self.context.hosts_file = Some(self.folder.write_hosts(&hosts)?);
        }
        Ok(())
    }

    /// Whether somebody removes the pod: none of its containers is to be started any more.
    pub fn is_ending(&self) -> bool {
        self.folder.is_ending()
    }

    /// Asks every running container to end, all at once, and kills what outlasts `grace_seconds`.
    pub async fn stop_containers(&self, grace_seconds: i64) -> Result<()> {
        if self.sandbox.is_empty() {
            return Ok(());
        }
        stop_containers(self.cri, &self.sandbox, |_| grace_seconds).await
    }

    /// Stops the sandbox; answers how long that took.
    pub async fn stop(&self) -> Result<Duration> {
        let began = Instant::now();
        if !self.sandbox.is_empty() {
            self.cri.stop_sandbox(&self.sandbox).await?;
        }
        Ok(began.elapsed())
    }

    /// Removes everything that the pod has here.
    pub async fn remove(&self) -> Result<Duration> {
        let began = Instant::now();
        if !self.sandbox.is_empty() {
            self.cri.remove_sandbox(&self.sandbox).await?;
        }
        // What another podvisor run has is not this one's to remove.
        if self.held.is_some() {
            remove_files(&self.context.uid, &self.context.log_directory)?;
        }
        Ok(began.elapsed())
    }
}

/// Asks every running container of a pod to end, all at once, and kills what outlasts its seconds of
/// grace.
pub async fn stop_containers(
    cri: &Cri,
    sandbox: &str,
    grace_seconds: impl Fn(&Container) -> i64,
) -> Result<()> {
    let containers = cri.list_containers(sandbox).await?;
    let running = containers
        .iter()
        .filter(|container| container.state() == ContainerState::ContainerRunning);
    let stops =
        running.map(|container| cri.stop_container(&container.id, grace_seconds(container)));
    for result in join_all(stops).await {
        // One that is gone meanwhile has ended.
        match result {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Removes a pod's folder, control groups and logs.
pub fn remove_files(uid: &str, log_directory: &Path) -> Result<()> {
    PodFolder::of(uid).remove()?;
    for cgroup in PodCgroup::all_of(uid) {
        cgroup.remove()?;
    }
    match std::fs::remove_dir_all(log_directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", log_directory.display()))
        }
        _ => Ok(()),
    }
}

/// The folder of a pod's logs.
pub fn log_directory(namespace: &str, name: &str, uid: &str) -> std::path::PathBuf {
    Path::new(LOGS).join(format!("{namespace}_{name}_{uid}"))
}
