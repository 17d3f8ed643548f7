//! The containers of a pod, from their images to their exit codes.

use std::cell::Cell;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::future::try_join_all;
use podvisor_proto::cri::v1::{ContainerState, ContainerStatus};

use super::images;
use super::logs::{self, LinePrinter};
use super::narrator::Narrator;
use super::pod::Pod;
use super::restart::{self, Role};
use crate::manifest::container::Container;
use crate::translate::{ReadyImage, container_config};

/// How often a container's state is looked at.
const POLL: Duration = Duration::from_millis(100);
/// Colours that tell containers apart on a terminal (ECMA-48 SGR).
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];

/// Runs the containers of one pod.
pub struct Containers<'a> {
    pod: &'a Pod<'a>,
    narrator: &'a Narrator,
    /// Set when this process was asked to end.
    stopping: &'a Cell<bool>,
}

/// A container that runs.
pub struct Started<'a> {
    container: &'a Container,
    role: Role,
    image: ReadyImage,
    printer: LinePrinter,
    attempt: u32,
    id: String,
}

impl Started<'_> {
    /// The runtime's id of it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its name in the pod.
    pub fn name(&self) -> &str {
        self.container.name.as_str()
    }
}

/// How a container has ended for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub exit_code: i32,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
}

impl<'a> Containers<'a> {
    /// The containers of `pod`, whose sandbox runs.
    pub fn new(pod: &'a Pod<'a>, narrator: &'a Narrator, stopping: &'a Cell<bool>) -> Self {
        Self {
            pod,
            narrator,
            stopping,
        }
    }

    /// Runs the init containers, one after the other; answers how the first that failed ended.
    pub async fn run_init(&self) -> Result<Option<Ended>> {
        for container in &self.pod.manifest.pod.spec.init_containers {
            let started = self.start(container, Role::Init).await?;
            let ended = self.supervise(started).await?;
            if ended.exit_code != 0 || self.is_stopping() {
                return Ok(Some(ended));
            }
        }
        Ok(None)
    }

    /// Starts the other containers, in their order.
    pub async fn start_all(&self) -> Result<Vec<Started<'a>>> {
        let mut started = Vec::new();
        for container in &self.pod.manifest.pod.spec.containers {
            if !self.is_stopping() {
                started.push(self.start(container, Role::App).await?);
            }
        }
        Ok(started)
    }

    /// Prints what they write until all have ended for good.
    pub async fn finish(&self, started: Vec<Started<'a>>) -> Result<Vec<Ended>> {
        try_join_all(started.into_iter().map(|started| self.supervise(started))).await
    }

    /// Whether nothing shall be started any more.
    fn is_stopping(&self) -> bool {
        self.stopping.get() || self.pod.is_ending()
    }

    async fn start(&self, container: &'a Container, role: Role) -> Result<Started<'a>> {
        let began = Instant::now();
        let what = || format!("container {}", container.name);
        let obtained = images::obtain(self.pod.cri, container, &self.pod.sandbox_config);
        let obtained = obtained.await.with_context(what)?;
        if obtained.pulled {
            self.narrator.phase(
                &format!("image {} fetched", container.image),
                began.elapsed(),
            );
        }
        let mut started = Started {
            container,
            role,
            image: obtained.image,
            printer: self.printer(container),
            attempt: 0,
            id: String::new(),
        };
        self.create_and_start(&mut started)
            .await
            .with_context(what)?;
        Ok(started)
    }

    async fn create_and_start(&self, started: &mut Started<'a>) -> Result<()> {
        let pod = self.pod;
        let Started {
            container,
            attempt,
            image,
            ..
        } = &*started;
        let config = container_config(pod.manifest, container, *attempt, image, &pod.context)?;
        let began = Instant::now();
        started.id = pod
            .cri
            .create_container(&pod.sandbox, config, &pod.sandbox_config)
            .await?;
        self.narrator.phase(
            &format!("container {} created", started.name()),
            began.elapsed(),
        );
        let began = Instant::now();
        pod.cri.start_container(&started.id).await?;
        self.narrator.phase(
            &format!("container {} started", started.name()),
            began.elapsed(),
        );
        if self.is_stopping() {
            // Those that ran when the stop was asked for are being stopped; this one came after.
            pod.cri.stop_container(&started.id, 0).await?;
        }
        Ok(())
    }

    /// Follows a container through its restarts to its last end.
    async fn supervise(&self, mut started: Started<'a>) -> Result<Ended> {
        let policy = self.pod.manifest.pod.spec.restart_policy;
        loop {
            let status = self.follow_to_end(&started).await?;
            self.tell_end(&started, &status);
            let ended = Ended {
                exit_code: status.exit_code,
                finished_at: status.finished_at,
            };
            let pause = restart::pause(policy, started.role, ended.exit_code, started.attempt);
            let Some(pause) = pause.filter(|_| !self.is_stopping()) else {
                return Ok(ended);
            };
            self.narrator.tell(&format!(
                "container {} starts again in {} s",
                started.name(),
                pause.as_secs()
            ));
            if !self.sleep_unless_stopping(pause).await {
                return Ok(ended);
            }
            self.pod.cri.remove_container(&started.id).await?;
            started.attempt += 1;
            let what = format!("container {}", started.name());
            self.create_and_start(&mut started).await.context(what)?;
        }
    }

    /// Prints a container's log until the container has ended.
    async fn follow_to_end(&self, started: &Started<'a>) -> Result<ContainerStatus> {
        let ended = Cell::new(false);
        let log = format!("{}/{}.log", started.name(), started.attempt);
        let log = self.pod.context.log_directory.join(log);
        let wait = async {
            let status = self.wait(&started.id).await;
            ended.set(true);
            status
        };
        let (status, printed) = tokio::join!(wait, logs::follow(&log, &started.printer, &ended));
        printed.with_context(|| format!("cannot print {}", log.display()))?;
        status
    }

    async fn wait(&self, id: &str) -> Result<ContainerStatus> {
        loop {
            let status = self.pod.cri.container_status(id).await?;
            match status.state() {
                ContainerState::ContainerExited => return Ok(status),
                // The runtime lost it; it does not come back.
                ContainerState::ContainerUnknown => {
                    return Ok(ContainerStatus {
                        exit_code: 255,
                        ..status
                    });
                }
                ContainerState::ContainerCreated | ContainerState::ContainerRunning => {}
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn tell_end(&self, started: &Started<'a>, status: &ContainerStatus) {
        let ContainerStatus {
            exit_code,
            reason,
            message,
            ..
        } = status;
        let mut what = format!(
            "container {} ended with exit code {exit_code}",
            started.name()
        );
        if !reason.is_empty() && !matches!(reason.as_str(), "Completed" | "Error") {
            what.push_str(&format!(" ({reason})"));
        }
        if !message.is_empty() {
            what.push_str(&format!(": {message}"));
        }
        self.narrator.tell(&what);
    }

    /// Answers whether the time has passed in peace.
    async fn sleep_unless_stopping(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        while !self.is_stopping() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            tokio::time::sleep(left.min(POLL)).await;
        }
        false
    }

    /// A lone container's lines stand for themselves.
    fn printer(&self, container: &Container) -> LinePrinter {
        let spec = &self.pod.manifest.pod.spec;
        let names: Vec<&str> = spec
            .init_containers
            .iter()
            .chain(&spec.containers)
            .map(|container| container.name.as_str())
            .collect();
        if names.len() == 1 {
            return LinePrinter {
                prefix: String::new(),
            };
        }
        let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
        let name = container.name.as_str();
        let index = names.iter().position(|other| *other == name).unwrap_or(0);
        let prefix = format!("{name:<width$} | ");
        let colour = COLOURS
            .get(index % COLOURS.len())
            .filter(|_| io::stdout().is_terminal());
        LinePrinter {
            prefix: match colour {
                Some(colour) => format!("\x1b[{colour}m{prefix}\x1b[0m"),
                None => prefix,
            },
        }
    }
}

/// The exit code of a pod: of the container that failed first, or 0.
pub fn exit_code(ended: &[Ended]) -> i32 {
    let failed = ended.iter().filter(|ended| ended.exit_code != 0);
    failed
        .min_by_key(|ended| ended.finished_at)
        .map_or(0, |ended| ended.exit_code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_is_the_pods() {
        let ended = |exit_code, finished_at| Ended {
            exit_code,
            finished_at,
        };
        assert_eq!(exit_code(&[ended(0, 1), ended(0, 2)]), 0);
        assert_eq!(exit_code(&[ended(0, 1), ended(7, 9), ended(3, 5)]), 3);
        assert_eq!(exit_code(&[]), 0);
    }
}
