//! What a container of a test pod is to be.

use std::path::Path;

use anyhow::Result;
use podvisor_proto::cri::v1::security_profile::ProfileType;
use podvisor_proto::cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, Device, HugepageLimit, ImageSpec,
    Int64Value, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, Mount, NamespaceMode, NamespaceOption, SecurityProfile,
};

use crate::container::Container;
use crate::pod::{CPU_PERIOD_US, Pod};

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
