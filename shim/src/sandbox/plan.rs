//! From a pod's bundle and its node's configuration to a plan for its guest.

use std::collections::HashMap;
use std::path::PathBuf;

use podvisor_annotations::Annotations;
use podvisor_annotations::value::boot::BootKind;
use podvisor_proto::agent::v1::ConfigureSandboxRequest;
use podvisor_vmm::Processors;

use super::error::TaskError;
use crate::annotations;
use crate::config::Config;
use crate::guest::MachinePlan;
use crate::guest::boot::BootPlan;
use crate::host::{HostError, allowed_cpus, cgroup, host_name};
use crate::pod::binding::{Binding, Bound};
use crate::pod::cpu_set::CpuSet;
use crate::pod::guest_spec::GuestSpecError;
use crate::pod::hardware;
use crate::pod::namespaces::NamespaceError;
use crate::pod::network::PodNetwork;
use crate::pod::room::Room;
use crate::pod::sizing::Size;
use crate::pod::users::UserMaps;
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

/// A pod as containerd described it.
#[derive(Clone, Debug)]
pub struct PodPlan {
    /// Its identifier.
    pub id: String,
    /// Its bundle.
    pub bundle: Bundle,
    /// What the node's administrator decided.
    pub config: Config,
    /// What it asks for by annotations.
    pub annotations: Annotations,
    /// Its network.
    pub network: PodNetwork,
    /// The release that it runs with.
    pub release: Release,
    leaf: PathBuf,
}

impl PodPlan {
    /// Plans pod `id`.
    ///
    /// # Errors
    /// [`TaskError`] for what it asks and cannot have.
    pub(super) fn new(
        id: &str,
        bundle: &Bundle,
        config: Config,
        placement: &Placement,
    ) -> Result<Self, TaskError> {
        let none = HashMap::new();
        let all = bundle.spec.annotations().as_ref().unwrap_or(&none);
        let annotations = annotations::read(all, &config.annotations)?;
        if annotations.boot == Some(BootKind::Container) {
            annotations::for_containers(&annotations)?;
        }
        guest_spec::check_pod(&bundle.spec)?;
        Ok(Self {
            id: id.to_owned(),
            bundle: bundle.clone(),
            annotations,
            network: PodNetwork::of_spec(&bundle.spec)?,
            release: placement.release.clone(),
            leaf: leaf(id, bundle, placement)?,
            config,
        })
    }

    /// Which kind of pod it is to be.
    pub fn boot(&self) -> BootKind {
        self.annotations.boot.unwrap_or(BootKind::Auto)
    }

    /// The size of its machine, and how far it can grow; one that is all its container's has no room for
    /// a guest of ours.
    ///
    /// # Errors
    /// [`TaskError::Size`].
    pub fn room(&self, is_machine: bool) -> Result<Room, TaskError> {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
        let (limits, memory) = (self.bundle.limits()?, self.config.default_memory);
        let of = if is_machine {
            Size::of_machine
        } else {
            Size::of_pod
        };
        let size = of(limits, &self.annotations, memory, cpus)?;
        let backing = hardware::memory_backing(&self.annotations, false);
        size.check_cgroup(backing, cgroup::memory_max(&self.leaf))?;
        if let (Some(hugepages), true) = (self.annotations.hugepages, backing.is_pool()) {
            let pool_max = cgroup::huge_pages_max(&self.leaf, backing.page_len());
            size.check_pool(hugepages, pool_max)?;
        }
        Ok(Room::new(size, &self.annotations, is_machine)?)
    }

    /// The pod's host name; the host's for a pod that is given none.
    pub fn hostname(&self) -> String {
        let given = self.bundle.spec.hostname().clone();
        given
            .filter(|name| !name.is_empty())
            .unwrap_or_else(host_name)
    }

    /// Whether its guest can only be made with its first container, which tells on which CPUs it runs.
    pub fn waits_for_container(&self) -> bool {
        self.boot() != BootKind::Machine && Binding::needs_cpus(&self.annotations)
    }

    /// Binds a machine with `processors` to its host, where it may use `cpus`; all that this process may
    /// without.
    ///
    /// # Errors
    /// [`TaskError`] when that cannot be.
    pub(super) fn bind(
        &self,
        processors: &mut Processors,
        room: Room,
        cpus: Option<&CpuSet>,
    ) -> Result<Binding, TaskError> {
        let cpus = match cpus {
            Some(cpus) => cpus.clone(),
            None if Binding::needs_cpus(&self.annotations) => {
                allowed_cpus().map_err(HostError::from)?
            }
            None => CpuSet::default(),
        };
        let transparent = self.config.transparent_huge_pages;
        let bound = Bound {
            room,
            backing: hardware::memory_backing(&self.annotations, transparent),
            processors,
            cpus: &cpus,
        };
        let promised = self.bundle.limits()?.millicpus();
        let binding = Binding::new(&self.annotations, promised, &bound)?;
        processors.pinning = binding.vcpus(&cpus);
        Ok(binding)
    }

    /// Plans the guest of a pod of containers, of which one may use `cpus` of the host, if that is known.
    ///
    /// # Errors
    /// [`TaskError`] for what it asks and cannot have.
    pub(super) fn boot_plan(&self, cpus: Option<&CpuSet>) -> Result<BootPlan, TaskError> {
        let room = self.room(false)?;
        let spec = &self.bundle.spec;
        let linux = spec.linux().as_ref();
        let sysctls = linux.and_then(|linux| linux.sysctl().clone());
        let users = UserMaps::of_pod(spec).map_err(NamespaceError::from);
        let users = users.map_err(GuestSpecError::from)?;
        let sandbox = ConfigureSandboxRequest {
            sandbox_id: self.id.clone(),
            hostname: self.hostname(),
            domainname: spec.domainname().clone().unwrap_or_default(),
            sysctls: sysctls.unwrap_or_default().into_iter().collect(),
            shm_size_bytes: guest_spec::shared_memory_size(spec).unwrap_or_default(),
            users: users.map(Into::into),
            ..ConfigureSandboxRequest::default()
        };
        let mut processors = hardware::processors(&self.annotations, room)?;
        let binding = self.bind(&mut processors, room, cpus)?;
        let machine = MachinePlan {
            room,
            binding,
            processors,
            memory_backing: hardware::memory_backing(
                &self.annotations,
                self.config.transparent_huge_pages,
            ),
            smbios: None,
            extras: hardware::extras(&self.annotations),
            kernel: self.config.kernel(&self.release),
            initrd: self.config.initrd(&self.release),
            kernel_args: kernel_args(&self.annotations, room),
            cards: Vec::new(),
            pet: None,
        };
        Ok(BootPlan {
            machine,
            network: self.network.clone(),
            sandbox,
            boot_timeout: self.config.boot_timeout,
            agent_timeout: self.config.agent_timeout,
        })
    }
}

/// Has the guest's kernel take memory into use that is plugged in: as far as it may for movable pages, for
/// only those can be given back (Documentation/admin-guide/mm/memory-hotplug.rst).
const PLUGGED_MEMORY_ARGS: [&str; 2] = [
    "memhp_default_state=online",
    "memory_hotplug.online_policy=auto-movable",
];

/// Further words for the guest's kernel.
pub fn kernel_args(annotations: &Annotations, room: Room) -> Vec<String> {
    let grows = room.most.memory > room.booted.memory;
    let plugged = PLUGGED_MEMORY_ARGS.iter().filter(|_| grows);
    let words = annotations.kernel_args.words().iter().chain(plugged);
    words.map(|word| (*word).to_owned()).collect()
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
