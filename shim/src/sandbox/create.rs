//! Makes containers and execs in the guest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::Spec;
use podvisor_devices::fs::{CachePolicy, ExportOptions, Writes};
use podvisor_proto::agent::SHARED_DIR;
use podvisor_proto::agent::v1::{self as agent, CreateContainerRequest, CreateExecRequest};

use super::error::TaskError;
use super::request::{CreateRequest, ProcessId};
use super::undo::{Hands, Undo, delete_process, undo_all};
use super::work::Link;
use crate::host::{HostMount, HostOps, RootfsRequest};
use crate::io::{self, Stdio, Streams};
use crate::machine::source::{Kind, Source};
use crate::pod::Bundle;
use crate::pod::guest_spec::{GuestSpec, GuestSpecError};
use crate::pod::resources::{GuestResources, Share};

/// Where a bundle's root file system is mounted when containerd brings it as mounts.
const ROOTFS: &str = "rootfs";

/// A container to make.
#[derive(Clone)]
pub struct ContainerPlan {
    /// Its identifier.
    pub id: String,
    /// Its bundle.
    pub bundle: Bundle,
    /// Its root file system; empty when the bundle has it already.
    pub rootfs: Vec<HostMount>,
    /// Its init's streams.
    pub stdio: Stdio,
    /// Whether it owns its guest's network.
    pub standalone: bool,
    /// The container whose processes it joins, when it has none of its own; the pod's for none.
    pub pid_namespace_of: Option<String>,
    /// Whether it may turn out to be a machine of its own.
    pub may_be_machine: bool,
}

impl ContainerPlan {
    /// A plan for what containerd requests.
    pub fn new(request: CreateRequest, bundle: Bundle, standalone: bool) -> Self {
        Self {
            id: request.id,
            bundle,
            rootfs: request.rootfs,
            stdio: request.stdio,
            standalone,
            pid_namespace_of: None,
            may_be_machine: false,
        }
    }
}

/// An exec to make.
pub struct ExecPlan {
    /// The container.
    pub container_id: String,
    /// The exec's identifier.
    pub exec_id: String,
    /// OCI process (JSON).
    pub process_json: Vec<u8>,
    /// Its streams.
    pub stdio: Stdio,
}

impl ExecPlan {
    /// The process that it becomes.
    pub fn process(&self) -> ProcessId {
        ProcessId {
            container: self.container_id.clone(),
            exec: self.exec_id.clone(),
        }
    }
}

/// A container that was made.
#[derive(Default)]
pub struct Made {
    /// Its init's streams.
    pub streams: Streams,
    /// What to take back when it is deleted.
    pub undo: Vec<Undo>,
    /// What it is given of the pod.
    pub share: Share,
}

/// Makes a container up to, not including, its start.
///
/// # Errors
/// [`TaskError`]; nothing of the container is left.
pub async fn container(hands: &Hands, mut plan: ContainerPlan) -> Result<Made, TaskError> {
    let share = fit_resources(&mut plan.bundle.spec, hands)?;
    let mut undo = Vec::new();
    match make(hands, plan, &mut undo).await {
        Ok(streams) => Ok(Made {
            streams,
            undo,
            share,
        }),
        Err(error) => {
            undo_all(&hands.host, Some(hands), undo).await;
            Err(error)
        }
    }
}

/// Fits a container's resources into its machine; yields what they give.
fn fit_resources(spec: &mut Spec, hands: &Hands) -> Result<Share, TaskError> {
    let linux = spec.linux_mut().as_mut();
    let Some(resources) = linux.and_then(|linux| linux.resources_mut().as_mut()) else {
        return Ok(Share::default());
    };
    let fitted = GuestResources::of_new(std::mem::take(resources), hands.room.now)?;
    *resources = fitted.resources;
    Ok(fitted.share)
}

async fn make(
    hands: &Hands,
    plan: ContainerPlan,
    undo: &mut Vec<Undo>,
) -> Result<Streams, TaskError> {
    let spec = GuestSpec::translate(&plan.bundle.spec, plan.standalone)?;
    let apparmor_policy = match spec.apparmor_profile() {
        Some(profile) => hands.host.apparmor_policy(profile)?,
        None => Vec::new(),
    };
    let (root, mounted) = root_folder(&hands.host, &plan).await?;
    if mounted {
        undo.push(Undo::Unmount(root.clone()));
    }
    if plan.may_be_machine && is_machine(&plan.bundle.spec, &root).await? {
        return Err(TaskError::IsMachine);
    }
    let name = format!("root-{}", plan.id);
    // The root of a container is changed by nobody else.
    let options = ExportOptions {
        writes: Writes::Everything,
        cache: CachePolicy::Always,
    };
    hands
        .machine
        .add_export(&name, hands.host.open_path(&root)?, options)?;
    undo.push(Undo::RemoveExport(name.clone()));
    let mut mounts = Vec::with_capacity(spec.binds().len());
    for bind in spec.binds() {
        let placed = hands.volumes.acquire(bind.source.clone()).await;
        let placed = placed.map_err(|error| TaskError::Mount {
            destination: bind.destination.clone(),
            source: Box::new(error),
        })?;
        undo.extend(placed.key.map(Undo::ReleaseVolume));
        mounts.push(placed.mount);
    }
    let mut numbers = Vec::with_capacity(spec.blocks().len());
    for block in spec.blocks() {
        let placed = hands.volumes.acquire_disk(block.disk).await?;
        undo.push(Undo::ReleaseVolume(placed.key));
        numbers.push(placed.number);
    }
    let spec_json = spec.placed(&Path::new(SHARED_DIR).join(name), &mounts, &numbers)?;
    let request = CreateContainerRequest {
        container_id: plan.id.clone(),
        spec_json,
        stdio: Some(wanted(&plan.stdio, console_size(&plan.bundle))),
        apparmor_policy,
        pid_namespace_of: plan.pid_namespace_of.unwrap_or_default(),
    };
    // Before the call: one that is not answered in time may make the container all the same.
    undo.push(Undo::DeleteContainer(plan.id));
    let created = hands.agent.create_container(request).await?;
    let tokens = created.streams.unwrap_or_default();
    Ok(io::attach(&*hands.machine, &tokens, &plan.stdio).await?)
}

/// Whether what a container brings is a machine's.
async fn is_machine(spec: &Spec, root: &Path) -> Result<bool, TaskError> {
    let (spec, root) = (spec.clone(), root.to_owned());
    let look = move || Source::find(&spec, &root, Kind::Told);
    Ok(tokio::task::spawn_blocking(look).await??.is_some())
}

/// The host's folder with the container's root file system, and whether it was mounted there.
pub(super) async fn root_folder(
    host: &Arc<dyn HostOps>,
    plan: &ContainerPlan,
) -> Result<(PathBuf, bool), TaskError> {
    if plan.rootfs.is_empty() {
        let root = plan
            .bundle
            .spec
            .root()
            .as_ref()
            .ok_or(GuestSpecError::NoRoot)?;
        return Ok((plan.bundle.path.join(root.path()), false));
    }
    let target = plan.bundle.path.join(ROOTFS);
    let request = RootfsRequest {
        target: target.clone(),
        mounts: plan.rootfs.clone(),
    };
    let host = Arc::clone(host);
    tokio::task::spawn_blocking(move || host.mount_rootfs(&request)).await??;
    Ok((target, true))
}

/// Makes another process of a container up to, not including, its start.
///
/// # Errors
/// [`TaskError`]; nothing of it is left.
pub(super) async fn exec(link: &Link, plan: ExecPlan) -> Result<Streams, TaskError> {
    let process = plan.process();
    let request = CreateExecRequest {
        container_id: plan.container_id,
        exec_id: plan.exec_id,
        process_json: plan.process_json,
        stdio: Some(wanted(&plan.stdio, (0, 0))),
    };
    let created = match link.agent.create_exec(request).await {
        Ok(created) => created,
        Err(status) => {
            // One that is not answered in time may make it all the same.
            delete_process(&link.agent, process).await;
            return Err(status.into());
        }
    };
    let tokens = created.streams.unwrap_or_default();
    match io::attach(&*link.machine, &tokens, &plan.stdio).await {
        Ok(streams) => Ok(streams),
        Err(error) => {
            delete_process(&link.agent, process).await;
            Err(error.into())
        }
    }
}

/// Which streams the guest is to make; rows and columns of a terminal.
fn wanted(stdio: &Stdio, (rows, columns): (u32, u32)) -> agent::Stdio {
    agent::Stdio {
        stdin: !stdio.stdin.is_empty(),
        stdout: !stdio.stdout.is_empty(),
        stderr: !stdio.stderr.is_empty() && !stdio.terminal,
        terminal: stdio.terminal,
        rows,
        columns,
    }
}

/// Rows and columns in the spec; 0 when it has none.
fn console_size(bundle: &Bundle) -> (u32, u32) {
    let size = bundle
        .spec
        .process()
        .as_ref()
        .and_then(|process| process.console_size());
    let length = |length: u64| u32::try_from(length).unwrap_or_default();
    size.map_or((0, 0), |size| (length(size.height()), length(size.width())))
}
