//! A container of a test pod and what runs in it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use podvisor_proto::cri::v1::security_profile::ProfileType;
use podvisor_proto::cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStats, ContainerStatsRequest,
    ContainerStatus, ContainerStatusRequest, CreateContainerRequest, Device, ExecSyncRequest,
    HugepageLimit, ImageSpec, Int64Value, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    Mount, RemoveContainerRequest, ReopenContainerLogRequest, StartContainerRequest,
    StopContainerRequest, UpdateContainerResourcesRequest,
};
use podvisor_proto::cri::v1::{
    LinuxContainerSecurityContext, NamespaceMode, NamespaceOption, SecurityProfile,
};

use crate::cri::Cri;
use crate::log_file::ContainerLog;
use crate::pod::{CPU_PERIOD_US, Pod};
use crate::wait;

/// The image of test containers, unless they name another.
const BUSYBOX: &str = "docker.io/library/busybox:latest";

/// What a container is to be.
pub struct ContainerBuilder<'p, 'c> {
    pod: &'p Pod<'c>,
    config: ContainerConfig,
    linux: LinuxContainerConfig,
}

impl<'p, 'c> ContainerBuilder<'p, 'c> {
    pub(crate) fn new(pod: &'p Pod<'c>, name: &str) -> Self {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.into(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: BUSYBOX.into(),
                ..ImageSpec::default()
            }),
            command: vec!["sleep".into(), "infinity".into()],
            log_path: format!("{name}.log"),
            ..ContainerConfig::default()
        };
        let linux = LinuxContainerConfig {
            security_context: Some(default_security_context()),
            ..LinuxContainerConfig::default()
        };
        Self { pod, config, linux }
    }

    /// The image, in place of busybox.
    #[must_use]
    pub fn image(mut self, image: &str) -> Self {
        self.config.image = Some(ImageSpec {
            image: image.into(),
            ..ImageSpec::default()
        });
        self
    }

    /// The command and its arguments.
    #[must_use]
    pub fn command(mut self, command: &[&str]) -> Self {
        self.config.command = command.iter().map(|&word| word.into()).collect();
        self
    }

    /// The arguments, in place of the image's.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.config.args = arguments.iter().map(|&word| word.into()).collect();
        self
    }

    /// A container that says nothing but its name, image and command, as the CRI validation suite
    /// makes them: no security context of the kubelet's.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.linux.security_context = None;
        self
    }

    /// The number of this attempt.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.config.metadata.get_or_insert_default().attempt = attempt;
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.config.labels.insert(key.into(), value.into());
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.config.annotations.insert(key.into(), value.into());
        self
    }

    /// A shell script as the command.
    #[must_use]
    pub fn script(self, script: &str) -> Self {
        self.command(&["sh", "-c", script])
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.config.envs.push(KeyValue {
            key: key.into(),
            value: value.into(),
        });
        self
    }

    /// The working directory.
    #[must_use]
    pub fn working_dir(mut self, path: &str) -> Self {
        self.config.working_dir = path.into();
        self
    }

    /// Binds `host` of the node to `path` in the container.
    #[must_use]
    pub fn mount(mut self, host: &Path, path: &str) -> Self {
        self.config.mounts.push(Mount {
            container_path: path.into(),
            host_path: host.display().to_string(),
            ..Mount::default()
        });
        self
    }

    /// Binds `host` of the node to `path` in the container, read-only.
    #[must_use]
    pub fn mount_read_only(self, host: &Path, path: &str) -> Self {
        self.mount_with(host, path, |mount| mount.readonly = true)
    }

    /// Binds `host` of the node to `path` in the container, as `change` makes of it what CRI can
    /// say of a mount.
    #[must_use]
    pub fn mount_with(self, host: &Path, path: &str, change: impl FnOnce(&mut Mount)) -> Self {
        let mut builder = self.mount(host, path);
        if let Some(mount) = builder.config.mounts.last_mut() {
            change(mount);
        }
        builder
    }

    /// Gives the container a device of the node at `path`, as the kubelet does for a raw block
    /// volume. `permissions` are some of `m`, `r` and `w`.
    #[must_use]
    pub fn device(mut self, host: &Path, path: &str, permissions: &str) -> Self {
        self.config.devices.push(Device {
            container_path: path.into(),
            host_path: host.display().to_string(),
            permissions: permissions.into(),
        });
        self
    }

    /// The memory limit in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: i64) -> Self {
        self.resources().memory_limit_in_bytes = mib << 20;
        self
    }

    /// The limit of 2 MiB pages, in bytes.
    #[must_use]
    pub fn huge_pages(mut self, bytes: u64) -> Self {
        self.resources().hugepage_limits.push(HugepageLimit {
            page_size: "2MB".into(),
            limit: bytes,
        });
        self
    }

    /// The CPU limit in thousandths.
    #[must_use]
    pub fn millicpus(mut self, millicpus: i64) -> Self {
        let resources = self.resources();
        resources.cpu_period = CPU_PERIOD_US;
        resources.cpu_quota = millicpus * CPU_PERIOD_US / 1000;
        self
    }

    /// User, group and supplemental groups by number.
    #[must_use]
    pub fn user(mut self, user: i64, group: i64, supplemental: &[i64]) -> Self {
        let context = self.linux.security_context.get_or_insert_default();
        context.run_as_user = Some(Int64Value { value: user });
        context.run_as_group = Some(Int64Value { value: group });
        context.supplemental_groups = supplemental.to_vec();
        self
    }

    /// A root file system that cannot be written.
    #[must_use]
    pub fn read_only_root(mut self) -> Self {
        self.linux
            .security_context
            .get_or_insert_default()
            .readonly_rootfs = true;
        self
    }

    /// Changes the security context.
    #[must_use]
    pub fn security(mut self, change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> Self {
        change(self.linux.security_context.get_or_insert_default());
        self
    }

    /// Everything of the guest, in a pod that allows it.
    #[must_use]
    pub fn privileged(mut self) -> Self {
        let context = self.linux.security_context.get_or_insert_default();
        context.privileged = true;
        context.seccomp = None;
        context.masked_paths.clear();
        context.readonly_paths.clear();
        self
    }

    /// Keeps standard input open.
    #[must_use]
    pub fn stdin(mut self) -> Self {
        self.config.stdin = true;
        self
    }

    /// Keeps standard input open until the first who was attached goes.
    #[must_use]
    pub fn stdin_once(mut self) -> Self {
        self.config.stdin_once = true;
        self.stdin()
    }

    /// Gives the command a terminal.
    #[must_use]
    pub fn terminal(mut self) -> Self {
        self.config.tty = true;
        self
    }

    /// Sets whatever resources CRI knows.
    #[must_use]
    pub fn with_resources(mut self, set: impl FnOnce(&mut LinuxContainerResources)) -> Self {
        set(self.resources());
        self
    }

    fn resources(&mut self) -> &mut LinuxContainerResources {
        self.linux.resources.get_or_insert_default()
    }

    /// Makes the container and starts it.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn start(self) -> Result<Container<'p, 'c>> {
        let container = self.create()?;
        container.start()?;
        Ok(container)
    }

    /// Makes the container without starting it.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn create(self) -> Result<Container<'p, 'c>> {
        let image = self.config.image.as_ref().map(|image| image.image.as_str());
        self.pod.cri.ensure_image(image.unwrap_or_default())?;
        let log_path = self.config.log_path.clone();
        let request = CreateContainerRequest {
            pod_sandbox_id: self.pod.id.clone(),
            config: Some(ContainerConfig {
                linux: Some(self.linux),
                ..self.config
            }),
            sandbox_config: Some(self.pod.config.clone()),
        };
        let answer = self.pod.cri.call("CreateContainer", |mut c| async move {
            c.create_container(request).await
        })?;
        Ok(Container {
            pod: self.pod,
            id: answer.container_id,
            log_path,
        })
    }
}

/// What the kubelet asks for unless a pod says otherwise: own processes, the runtime's seccomp
/// profile, and nothing of /proc and /sys that tells of the machine or changes it.
fn default_security_context() -> LinuxContainerSecurityContext {
    const MASKED: [&str; 4] = [
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/sys/firmware",
    ];
    const READ_ONLY: [&str; 5] = [
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger",
    ];
    LinuxContainerSecurityContext {
        namespace_options: Some(NamespaceOption {
            pid: NamespaceMode::Container.into(),
            ..NamespaceOption::default()
        }),
        seccomp: Some(SecurityProfile {
            profile_type: ProfileType::RuntimeDefault.into(),
            ..SecurityProfile::default()
        }),
        masked_paths: MASKED.map(str::to_owned).to_vec(),
        readonly_paths: READ_ONLY.map(str::to_owned).to_vec(),
        ..LinuxContainerSecurityContext::default()
    }
}

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
    log_path: String,
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
