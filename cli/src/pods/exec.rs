//! `podvisor exec`: a command in a container, to its end.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use podvisor_proto::cri::v1::{Container, ContainerState};

use super::PodName;
use crate::cri::Cri;

/// Runs `command` in a running container of the pod, the first unless `container` names one, prints
/// its output and answers its exit code.
pub async fn exec(
    cri: &Cri,
    pod: &PodName,
    container: Option<&str>,
    command: &[String],
    timeout: Option<Duration>,
) -> Result<i32> {
    let (_, id) = find_container(cri, pod, container).await?;
    let output = cri.exec_sync(&id, command, timeout).await?;
    io::stdout()
        .write_all(&output.stdout)
        .context("cannot write to stdout")?;
    io::stderr()
        .write_all(&output.stderr)
        .context("cannot write to stderr")?;
    Ok(output.exit_code)
}

/// Name and id of a running container of the pod: the first unless `container` names one.
pub async fn find_container(
    cri: &Cri,
    pod: &PodName,
    container: Option<&str>,
) -> Result<(String, String)> {
    let sandbox = pod.find(cri).await?;
    let containers = cri.list_containers(&sandbox.id).await?;
    let chosen = choose(&containers, container).with_context(|| format!("pod {}", pod.name))?;
    Ok((name(chosen), chosen.id.clone()))
}

fn name(container: &Container) -> String {
    let metadata = container.metadata.as_ref();
    metadata
        .map(|metadata| metadata.name.clone())
        .unwrap_or_default()
}

fn choose<'a>(containers: &'a [Container], wanted: Option<&str>) -> Result<&'a Container> {
    let candidates = containers
        .iter()
        .filter(|container| container.state() == ContainerState::ContainerRunning)
        .filter(|container| wanted.is_none_or(|wanted| name(container) == wanted));
    match (
        candidates.min_by_key(|container| container.created_at),
        wanted,
    ) {
        (Some(oldest), _) => Ok(oldest),
        (None, Some(wanted)) => bail!("no container {wanted} is running"),
        (None, None) => bail!("no container is running"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podvisor_proto::cri::v1::ContainerMetadata;

    fn container(name: &str, created_at: i64, state: ContainerState) -> Container {
        let metadata = ContainerMetadata {
            name: name.into(),
            attempt: 0,
        };
        Container {
            id: name.into(),
            metadata: Some(metadata),
            created_at,
            state: state.into(),
            ..Container::default()
        }
    }

    #[test]
    fn the_first_that_runs_is_taken_unless_one_is_named() {
        use ContainerState::{ContainerExited, ContainerRunning};
        let containers = [
            container("c", 3, ContainerRunning),
            container("b", 2, ContainerRunning),
            container("a", 1, ContainerExited),
        ];
        assert_eq!(choose(&containers, None).unwrap().id, "b");
        assert_eq!(choose(&containers, Some("c")).unwrap().id, "c");
        assert!(choose(&containers, Some("a")).is_err());
        assert!(choose(&[], None).is_err());
    }
}
