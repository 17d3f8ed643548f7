//! `podvisor rm`: what `podvisor run` made and left.

use anyhow::{Context, Result, bail};

use super::{PodName, is_managed, metadata};
use crate::cri::Cri;
use crate::run::{self, PodFolder};
use crate::translate::grace_period_seconds;

/// The grace of containers that tell none: Kubernetes' default.
const GRACE_SECONDS: i64 = 30;

/// Stops and removes a pod with its volumes and logs, as its deletion would: its containers have their
/// grace period, and a `podvisor run` that has the pod ends first. Pods of others, such as a kubelet's,
/// are refused.
pub async fn remove(cri: &Cri, pod: &PodName) -> Result<()> {
    let sandbox = pod.find(cri).await?;
    if !is_managed(&sandbox) {
        bail!("pod {} was not made by podvisor run", pod.name);
    }
    let metadata = metadata(&sandbox);
    let folder = PodFolder::of(&metadata.uid);
    folder.announce_end()?;
    run::stop_containers(cri, &sandbox.id, |container| {
        grace_period_seconds(&container.annotations).unwrap_or(GRACE_SECONDS)
    })
    .await?;
    let released = folder.wait_for_release().await;
    released.with_context(|| format!("pod {}", pod.name))?;
    cri.stop_sandbox(&sandbox.id).await?;
    cri.remove_sandbox(&sandbox.id).await?;
    let logs = run::log_directory(&metadata.namespace, &metadata.name, &metadata.uid);
    run::remove_files(&metadata.uid, &logs)
}
