//! Images, fetched as their pull policy says.

use anyhow::{Context, Result, bail};
use podvisor_proto::cri::v1::{Image, PodSandboxConfig};

use crate::cri::Cri;
use crate::manifest::container::{Container, PullPolicy};
use crate::translate::{ImageUser, ReadyImage};

/// An image, and whether it was fetched just now.
#[derive(Debug)]
pub struct Obtained {
    pub image: ReadyImage,
    pub pulled: bool,
}

/// Makes sure that a container's image is on this machine.
pub async fn obtain(
    cri: &Cri,
    container: &Container,
    sandbox: &PodSandboxConfig,
) -> Result<Obtained> {
    let name = container.image.as_str();
    let policy = container
        .image_pull_policy
        .unwrap_or_else(|| default_policy(name));
    let present = match policy {
        PullPolicy::Always => None,
        PullPolicy::IfNotPresent | PullPolicy::Never => cri.image(name).await?,
    };
    if let Some(image) = present {
        return Ok(Obtained {
            image: ready(image),
            pulled: false,
        });
    }
    if policy == PullPolicy::Never {
        bail!("image {name} is not on this machine, and imagePullPolicy is Never");
    }
    cri.pull(name, sandbox)
        .await
        .with_context(|| format!("cannot fetch image {name}"))?;
    let image = cri.image(name).await?;
    let image = image.with_context(|| format!("image {name} is gone after it was fetched"))?;
    Ok(Obtained {
        image: ready(image),
        pulled: true,
    })
}

/// Kubernetes' default: `latest` may change at any time, other tags do not.
fn default_policy(name: &str) -> PullPolicy {
    if name.contains('@') {
        return PullPolicy::IfNotPresent;
    }
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        None | Some((_, "latest")) => PullPolicy::Always,
        Some(_) => PullPolicy::IfNotPresent,
    }
}

fn ready(image: Image) -> ReadyImage {
    let user = match image.uid {
        Some(uid) => ImageUser::Uid(uid.value),
        None if image.username.is_empty() => ImageUser::Uid(0),
        None => ImageUser::Name(image.username),
    };
    ReadyImage { id: image.id, user }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_latest_is_always_fetched() {
        for (name, policy) in [
            ("busybox", PullPolicy::Always),
            ("host:5000/busybox", PullPolicy::Always),
            ("busybox:latest", PullPolicy::Always),
            ("busybox:1.36", PullPolicy::IfNotPresent),
            ("host:5000/busybox:1.36", PullPolicy::IfNotPresent),
            ("busybox@sha256:00", PullPolicy::IfNotPresent),
        ] {
            assert_eq!(default_policy(name), policy, "{name}");
        }
    }
}
