//! From a pod's bundle and its node's configuration to a plan for its guest.

use std::collections::HashMap;
use std::path::PathBuf;

use podvisor_proto::agent::v1::ConfigureSandboxRequest;

use super::error::TaskError;
use crate::annotations::Annotations;
use crate::config::Config;
use crate::guest::MachinePlan;
use crate::guest::boot::BootPlan;
use crate::host::{cgroup, host_name};
use crate::pod::network::PodNetwork;
use crate::pod::sizing::Size;
use crate::pod::{Bundle, cgroup_path, guest_spec};
use crate::release::Release;

/// Where the pod's server is on its host.
#[derive(Clone, Debug)]
pub struct Placement {
    /// Its leaf in the cgroup tree, relative to the root; None while it is still in containerd's
    /// group, as its bundle has not said where the pod's is.
    pub cgroup: Option<PathBuf>,
    /// The release it belongs to.
    pub release: Release,
}

/// Plans the guest of pod `id`.
///
/// # Errors
/// [`TaskError`] for what the pod asks and cannot have.
pub(super) fn boot_plan(
    id: &str,
    bundle: &Bundle,
    config: &Config,
    placement: &Placement,
) -> Result<BootPlan, TaskError> {
    let leaf = leaf(id, bundle, placement)?;
    let none = HashMap::new();
    let annotations = bundle.spec.annotations().as_ref().unwrap_or(&none);
    let annotations = Annotations::parse(annotations, &config.annotations)?;
    let network = PodNetwork::of_spec(&bundle.spec)?;
    guest_spec::check_pod(&bundle.spec)?;
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
    let size = Size::of_pod(bundle.limits()?, &annotations, config.default_memory, cpus)?;
    size.check_cgroup(cgroup::memory_max(&leaf))?;
    let sysctls = bundle
        .spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.sysctl().clone());
    let hostname = bundle.spec.hostname().clone();
    let hostname = hostname.filter(|name| !name.is_empty());
    let sandbox = ConfigureSandboxRequest {
        sandbox_id: id.to_owned(),
        hostname: hostname.unwrap_or_else(host_name),
        domainname: bundle.spec.domainname().clone().unwrap_or_default(),
        sysctls: sysctls.unwrap_or_default().into_iter().collect(),
        shm_size_bytes: guest_spec::shared_memory_size(&bundle.spec).unwrap_or_default(),
        ..ConfigureSandboxRequest::default()
    };
    let machine = MachinePlan {
        size,
        kernel: config.kernel(&placement.release),
        initrd: config.initrd(&placement.release),
        kernel_args: annotations.kernel_args,
        transparent_huge_pages: config.transparent_huge_pages,
        nics: Vec::new(),
    };
    Ok(BootPlan {
        machine,
        network,
        sandbox,
        boot_timeout: config.boot_timeout,
        agent_timeout: config.agent_timeout,
    })
}

/// Where in the cgroup tree the server of pod `id` belongs.
///
/// # Errors
/// [`TaskError::Cgroup`] when the spec names no place.
pub(super) fn leaf(id: &str, bundle: &Bundle, placement: &Placement) -> Result<PathBuf, TaskError> {
    match &placement.cgroup {
        Some(leaf) => Ok(leaf.clone()),
        None => Ok(cgroup_path::leaf_of(&bundle.spec, id)?),
    }
}
