//! Pods that are there: found, listed, entered, removed.

mod exec;
mod list;
mod remove;

use anyhow::{Result, bail};
use podvisor_proto::cri::v1::{PodSandbox, PodSandboxMetadata};

use crate::cri::Cri;
use crate::translate::MANAGED_LABEL;

pub use exec::{exec, find_container};
pub use list::list;
pub use remove::remove;

/// Which pod is meant.
#[derive(Clone, Debug)]
pub struct PodName {
    /// Name, or the beginning of the sandbox's id.
    pub name: String,
    pub namespace: String,
}

impl PodName {
    fn is_of(&self, sandbox: &PodSandbox) -> bool {
        let PodSandboxMetadata {
            name, namespace, ..
        } = metadata(sandbox);
        (name == self.name && namespace == self.namespace) || sandbox.id.starts_with(&self.name)
    }

    /// The newest pod of that name.
    async fn find(&self, cri: &Cri) -> Result<PodSandbox> {
        let sandboxes = cri.list_sandboxes().await?;
        let named = sandboxes.into_iter().filter(|sandbox| self.is_of(sandbox));
        match named.max_by_key(|sandbox| sandbox.created_at) {
            Some(sandbox) => Ok(sandbox),
            None => bail!(
                "there is no pod {} in namespace {}",
                self.name,
                self.namespace
            ),
        }
    }
}

fn metadata(sandbox: &PodSandbox) -> PodSandboxMetadata {
    sandbox.metadata.clone().unwrap_or_default()
}

/// Whether `podvisor run` made the pod.
fn is_managed(sandbox: &PodSandbox) -> bool {
    sandbox
        .labels
        .get(MANAGED_LABEL.0)
        .is_some_and(|value| value == MANAGED_LABEL.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(id: &str, name: &str, namespace: &str) -> PodSandbox {
        let metadata = PodSandboxMetadata {
            name: name.into(),
            namespace: namespace.into(),
            ..PodSandboxMetadata::default()
        };
        PodSandbox {
            id: id.into(),
            metadata: Some(metadata),
            ..PodSandbox::default()
        }
    }

    #[test]
    fn pods_are_found_by_name_in_their_namespace_or_by_id() {
        let name = |name: &str| PodName {
            name: name.into(),
            namespace: "default".into(),
        };
        assert!(name("web").is_of(&sandbox("abc123", "web", "default")));
        assert!(!name("web").is_of(&sandbox("abc123", "web", "other")));
        assert!(name("abc").is_of(&sandbox("abc123", "web", "other")));
        assert!(!name("we").is_of(&sandbox("abc123", "web", "default")));
    }
}
