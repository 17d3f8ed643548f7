//! A container of a test pod and what runs in it.

use std::io::{Seek as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use podvisor_proto::cri::v1::{
    ContainerState, ContainerStats, ContainerStatsRequest, ContainerStatus, ContainerStatusRequest,
    ExecSyncRequest, LinuxContainerResources, RemoveContainerRequest, ReopenContainerLogRequest,
    StartContainerRequest, StopContainerRequest, UpdateContainerResourcesRequest,
};

use crate::cri::Cri;
use crate::log_file::ContainerLog;
use crate::pod::Pod;
use crate::wait;

/// What an execution left.
#[derive(Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit code.
    pub code: i32,
}

/// A container of a pod; it goes with its pod.
pub struct Container<'p, 'c> {
    pub(crate) pod: &'p Pod<'c>,
    /// The container's id.
    pub id: String,
    pub(crate) log_path: String,
}

impl Container<'_, '_> {
    /// Starts the created container.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn start(&self) -> Result<()> {
        Self::start_by_id(self.pod.cri, &self.id)
    }

    /// Starts a container over another connection than its pod's.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn start_by_id(cri: &Cri, id: &str) -> Result<()> {
        let request = StartContainerRequest {
            container_id: id.into(),
        };
        cri.call("StartContainer", |mut c| async move {
            c.start_container(request).await
        })
        .map(drop)
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// What containerd answered; an exit code other than 0 is no error.
    pub fn exec(&self, command: &[&str]) -> Result<ExecOutput> {
        self.exec_within(command, Duration::ZERO)
    }

    /// Runs a command to its end, or to a limit in whole seconds; zero is none.
    ///
    /// # Errors
    /// What containerd answered, `DeadlineExceeded` at the limit; an exit code other than 0 is no
    /// error.
    pub fn exec_within(&self, command: &[&str], limit: Duration) -> Result<ExecOutput> {
        let request = ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|&word| word.into()).collect(),
            timeout: i64::try_from(limit.as_secs())?,
        };
        let answer = self
            .pod
            .cri
            .call(
                "ExecSync",
                |mut c| async move { c.exec_sync(request).await },
            )
            .with_context(|| format!("exec {command:?}"))?;
        Ok(ExecOutput {
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
            code: answer.exit_code,
        })
    }

    /// Runs a script by containerd's own client, which may have written all of `input` before the process is started.
    ///
    /// # Errors
    /// When it cannot be run. Its exit code is the client's.
    pub fn exec_by_ctr(&self, script: &str, input: &[u8]) -> Result<Output> {
        let mut file = tempfile::tempfile_in("/var/tmp")?;
        file.write_all(input)?;
        file.rewind()?;
        Command::new("ctr")
            .args(["--namespace", "k8s.io", "tasks", "exec", "--exec-id", "ctr"])
            .args([&self.id, "sh", "-c", script])
            .stdin(file)
            .output()
            .context("cannot run ctr")
    }

    /// Runs a shell script that must succeed, and yields its trimmed standard output.
    ///
    /// # Errors
    /// When it exits with another code than 0, with its output.
    pub fn shell(&self, script: &str) -> Result<String> {
        let output = self.exec(&["sh", "-c", script])?;
        if output.code != 0 {
            bail!(
                "{script:?} exited with {}: {}{}",
                output.code,
                output.stdout,
                output.stderr
            );
        }
        Ok(output.stdout.trim_end().to_owned())
    }

    /// What containerd knows of the container.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn status(&self) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest {
            container_id: self.id.clone(),
            ..Default::default()
        };
        let answer = self.pod.cri.call("ContainerStatus", |mut c| async move {
            c.container_status(request).await
        })?;
        answer.status.context("ContainerStatus: no status")
    }

    /// Waits until the container has ended, at most `limit`.
    ///
    /// # Errors
    /// When it still runs then.
    pub fn wait(&self, limit: Duration) -> Result<ContainerStatus> {
        wait::until("end of container", limit, || {
            let status = self.status()?;
            Ok((status.state() == ContainerState::ContainerExited).then_some(status))
        })
    }

    /// The file that containerd writes the container's log to.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.pod.log_folder().join(&self.log_path)
    }

    /// Makes containerd write the log to a new file of the same name.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn reopen_log(&self) -> Result<()> {
        let request = ReopenContainerLogRequest {
            container_id: self.id.clone(),
        };
        self.pod
            .cri
            .call("ReopenContainerLog", |mut c| async move {
                c.reopen_container_log(request).await
            })
            .map(drop)
    }

    /// What the container has written so far.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log(&self) -> Result<ContainerLog> {
        let path = self.log_path();
        let content = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        ContainerLog::parse(&String::from_utf8_lossy(&content))
    }

    /// CPU and memory as CRI reports them.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn stats(&self) -> Result<ContainerStats> {
        let request = ContainerStatsRequest {
            container_id: self.id.clone(),
        };
        let answer = self.pod.cri.call("ContainerStats", |mut c| async move {
            c.container_stats(request).await
        })?;
        answer.stats.context("ContainerStats: no stats")
    }

    /// Changes the container's resources.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn update(&self, resources: LinuxContainerResources) -> Result<()> {
        let request = UpdateContainerResourcesRequest {
            container_id: self.id.clone(),
            linux: Some(resources),
            ..Default::default()
        };
        self.pod
            .cri
            .call("UpdateContainerResources", |mut c| async move {
                c.update_container_resources(request).await
            })
            .map(drop)
    }

    /// Asks the container to end, and kills it after `grace`.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn stop(&self, grace: Duration) -> Result<()> {
        let timeout = i64::try_from(grace.as_secs())?;
        let request = StopContainerRequest {
            container_id: self.id.clone(),
            timeout,
        };
        self.pod
            .cri
            .call("StopContainer", |mut c| async move {
                c.stop_container(request).await
            })
            .map(drop)
    }

    /// Removes the ended container.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn remove(&self) -> Result<()> {
        let request = RemoveContainerRequest {
            container_id: self.id.clone(),
        };
        self.pod
            .cri
            .call("RemoveContainer", |mut c| async move {
                c.remove_container(request).await
            })
            .map(drop)
    }
}
