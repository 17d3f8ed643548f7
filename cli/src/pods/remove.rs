//! `podvisor rm`: what `podvisor run` made and left.

use anyhow::{Result, bail};

use super::{PodName, is_managed, metadata};
use crate::cri::Cri;
use crate::run;

/// Stops and removes a pod with its volumes and logs. Pods of others, such as a kubelet's, are
/// refused.
pub async fn remove(cri: &Cri, pod: &PodName) -> Result<()> {
    let sandbox = pod.find(cri).await?;
    if !is_managed(&sandbox) {
        bail!("pod {} was not made by podvisor run", pod.name);
    }
    cri.stop_sandbox(&sandbox.id).await?;
    cri.remove_sandbox(&sandbox.id).await?;
    let metadata = metadata(&sandbox);
    let logs = run::log_directory(&metadata.namespace, &metadata.name, &metadata.uid);
    run::remove_files(&metadata.uid, &logs)
}
