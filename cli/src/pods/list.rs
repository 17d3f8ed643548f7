//! `podvisor ps`: the pods of this machine.

use std::fmt::Write;

use anyhow::Result;
use podvisor_proto::cri::v1::{PodSandbox, PodSandboxState};

use super::metadata;
use crate::cri::Cri;

/// A table of all pods, the newest first.
pub async fn list(cri: &Cri) -> Result<String> {
    let mut sandboxes = cri.list_sandboxes().await?;
    sandboxes.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.created_at));
    let mut text = String::new();
    writeln!(
        text,
        "{:<14} {:<10} {:<12} {:<16} NAME",
        "SANDBOX", "STATE", "HANDLER", "NAMESPACE"
    )?;
    for sandbox in &sandboxes {
        writeln!(text, "{}", row(sandbox))?;
    }
    Ok(text)
}

fn row(sandbox: &PodSandbox) -> String {
    let metadata = metadata(sandbox);
    let id: String = sandbox.id.chars().take(13).collect();
    let state = match sandbox.state() {
        PodSandboxState::SandboxReady => "ready",
        PodSandboxState::SandboxNotready => "ended",
    };
    let handler = match sandbox.runtime_handler.as_str() {
        "" => "-",
        handler => handler,
    };
    format!(
        "{id:<14} {state:<10} {handler:<12} {:<16} {}",
        metadata.namespace, metadata.name
    )
}
