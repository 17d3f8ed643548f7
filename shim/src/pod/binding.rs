//! Which of the host's CPUs a machine's processors run on, and which of its NUMA nodes it has an image of.

use podvisor_annotations::Annotations;
use podvisor_annotations::value::cpu::{CpuPinning, Numa as NumaMode};
use podvisor_vmm::numa::{HostNode, HostNodesError, MirrorError, mirror};
use podvisor_vmm::{MemoryBacking, Numa, Processors, Vcpus};
use thiserror::Error;

use super::cpu_set::CpuSet;
use super::resources::Share;
use super::room::Room;

/// CPU shares of a whole CPU (Kubernetes, `MilliCPUToShares`).
const SHARES_PER_CPU: u64 = 1024;

/// How a machine is bound to its host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Binding {
    /// Whether each processor has a CPU for itself.
    pub is_pinned: bool,
    /// The guest's nodes.
    pub numa: Option<Numa>,
    /// The host's, when the guest has an image of them.
    nodes: Vec<HostNode>,
    /// Thousandths of a CPU that all containers of the pod may use; 0 when it is not known.
    promised: u64,
}

/// A machine that is to be bound.
pub struct Bound<'a> {
    /// Its size.
    pub room: Room,
    /// What its memory lies in.
    pub backing: MemoryBacking,
    /// Its processors.
    pub processors: &'a Processors,
    /// The CPUs of the host that it may use.
    pub cpus: &'a CpuSet,
}

/// Why a machine cannot be bound to its host as it asks for.
#[derive(Debug, Error)]
pub enum BindingError {
    /// The container may run anywhere.
    #[error(
        "podvisor.io/cpu-pinning: auto, but the container names no CPUs: it has exclusive ones when the \
         kubelet's CPU manager policy is static, the pod is Guaranteed and the container's CPU limit is whole"
    )]
    NoCpus,
    /// Its CPUs are not its own.
    #[error(
        "podvisor.io/cpu-pinning: auto, but CPUs {cpus} are not the container's own: they are {}, and it has {asked}",
        .cpus.len()
    )]
    Shared {
        /// The CPUs.
        cpus: CpuSet,
        /// What it asks for.
        asked: String,
    },
    /// The pod has fewer CPUs than its machine.
    #[error(
        "podvisor.io/cpu-pinning: auto, but the pod's VM has {vcpus} vCPUs and the pod {} exclusive CPUs ({cpus})",
        .cpus.len()
    )]
    TooFew {
        /// The machine's.
        vcpus: u8,
        /// The pod's.
        cpus: CpuSet,
    },
    /// The host does not tell its nodes.
    #[error("podvisor.io/numa: auto")]
    Nodes(#[from] HostNodesError),
    /// There is no image of them.
    #[error("podvisor.io/numa: auto")]
    Mirror(#[from] MirrorError),
    /// The guest of a pod of containers does not know nodes.
    #[error(
        "podvisor.io/numa: auto, but the pod's CPUs are on {0} NUMA nodes of the host, and only a machine pod's \
         own kernel tells nodes apart: a Topology Manager policy of single-numa-node keeps a pod on one"
    )]
    OneNode(usize),
    /// Processors that come have no place.
    #[error(
        "podvisor.io/numa: auto, but a VM on {0} NUMA nodes has no room for more CPUs: podvisor.io/max-cpus must be \
         left out"
    )]
    Growing(usize),
}

impl Share {
    /// The CPUs that are this container's own. The kubelet gives such CPUs to containers that ask for whole
    /// ones, exactly as many; who shares CPUs has others. Some kubelets leave such a container's limit out:
    /// then its shares tell how many it asked for.
    ///
    /// # Errors
    /// [`BindingError`] when they are not its own.
    pub fn exclusive_cpus(&self) -> Result<&CpuSet, BindingError> {
        let cpus = self.host_cpus.as_ref().ok_or(BindingError::NoCpus)?;
        let count = u64::try_from(cpus.len()).unwrap_or(u64::MAX);
        let is_own = match (self.limit_millicpus, self.cpu_shares) {
            (Some(millicpus), _) => millicpus == count * 1000,
            (None, Some(shares)) => shares == count * SHARES_PER_CPU,
            (None, None) => false,
        };
        if is_own {
            return Ok(cpus);
        }
        let asked = self.limit_millicpus.map_or_else(
            || "no limit".to_owned(),
            |millicpus| format!("a limit of {millicpus}m"),
        );
        let cpus = cpus.clone();
        Err(BindingError::Shared { cpus, asked })
    }
}

impl Binding {
    /// Whether a machine can only be made once it is known which CPUs it may use.
    pub fn needs_cpus(annotations: &Annotations) -> bool {
        annotations.numa == Some(NumaMode::Auto)
    }

    /// How a pod's machine is bound; `promised` is the pod's limit in thousandths of a CPU, if it has one.
    ///
    /// # Errors
    /// [`BindingError`] when it cannot be.
    pub fn new(
        annotations: &Annotations,
        promised: Option<u64>,
        bound: &Bound<'_>,
    ) -> Result<Self, BindingError> {
        let mut binding = Self {
            is_pinned: annotations.cpu_pinning == Some(CpuPinning::Auto),
            promised: promised.unwrap_or_default(),
            ..Self::default()
        };
        if Self::needs_cpus(annotations) {
            binding.nodes = HostNode::all()?;
            binding.numa = numa(&binding.nodes, bound)?;
        }
        Ok(binding)
    }

    /// Whether any processor is bound.
    pub fn is_bound(&self) -> bool {
        self.is_pinned || self.numa.is_some()
    }

    /// Makes sure that a machine with `vcpus` can have a CPU for each, as far as the pod's containers that
    /// have these `shares` tell: others may come until they have all that the pod was promised.
    ///
    /// # Errors
    /// [`BindingError`].
    pub fn check<'a>(
        &self,
        shares: impl IntoIterator<Item = &'a Share>,
        vcpus: Vcpus,
    ) -> Result<(), BindingError> {
        if !self.is_pinned {
            return Ok(());
        }
        let own = shares.into_iter().map(Share::exclusive_cpus);
        let own = own.collect::<Result<Vec<_>, _>>()?;
        let given: usize = own.iter().map(|cpus| cpus.len()).sum();
        let cpus = CpuSet::union(own);
        let is_all = u64::try_from(given).unwrap_or(u64::MAX) * 1000 >= self.promised;
        if is_all && cpus.len() < usize::from(vcpus.get()) {
            let vcpus = vcpus.get();
            return Err(BindingError::TooFew { vcpus, cpus });
        }
        Ok(())
    }

    /// The host's CPUs that each processor runs on, of the pod's `cpus`; those without any, and those beyond
    /// the list, are free.
    pub fn vcpus(&self, cpus: &CpuSet) -> Vec<Vec<usize>> {
        let Some(numa) = &self.numa else {
            let own = cpus.numbers().filter(|_| self.is_pinned);
            return own.map(|cpu| vec![cpu]).collect();
        };
        let mut all = Vec::new();
        for node in numa.nodes() {
            let host = self
                .nodes
                .iter()
                .find(|host| Some(host.id) == node.host_node);
            let near = host.map(|host| host.cpus.clone()).unwrap_or_default();
            let near: Vec<usize> = near.into_iter().filter(|cpu| cpus.has(*cpu)).collect();
            for (place, _) in node.vcpus.iter().enumerate() {
                let own = near.get(place).filter(|_| self.is_pinned);
                all.push(own.map_or_else(|| near.clone(), |cpu| vec![*cpu]));
            }
        }
        all
    }
}

/// The guest's nodes; none on a host whose kernel knows none.
fn numa(nodes: &[HostNode], bound: &Bound<'_>) -> Result<Option<Numa>, BindingError> {
    if nodes.is_empty() {
        return Ok(None);
    }
    let cpus: Vec<usize> = bound.cpus.numbers().collect();
    let room = bound.room;
    let memory = room.booted.memory;
    let numa = mirror(nodes, &cpus, memory, bound.backing, bound.processors)?.numa;
    match numa.nodes().len() {
        1 => Ok(Some(numa)),
        count if !room.is_machine => Err(BindingError::OneNode(count)),
        count if room.most.vcpus > room.booted.vcpus => Err(BindingError::Growing(count)),
        _ => Ok(Some(numa)),
    }
}

#[cfg(test)]
mod tests {
    use podvisor_vmm::MemorySize;

    use super::*;
    use crate::pod::sizing::Size;

    fn share(cpus: &str, limit_millicpus: Option<u64>, cpu_shares: Option<u64>) -> Share {
        Share {
            host_cpus: cpus.parse().ok(),
            limit_millicpus,
            cpu_shares,
            memory: None,
        }
    }

    fn count(vcpus: u32) -> Vcpus {
        Vcpus::try_from(vcpus).unwrap()
    }

    fn pinned(promised: u64) -> Binding {
        Binding {
            is_pinned: true,
            promised,
            ..Binding::default()
        }
    }

    fn room(vcpus: u32, most: u32, is_machine: bool) -> Room {
        let size = |vcpus| Size {
            vcpus: count(vcpus),
            memory: MemorySize::from_bytes(512 << 20).unwrap(),
        };
        Room {
            booted: size(vcpus),
            now: size(vcpus),
            most: size(most),
            is_machine,
        }
    }

    fn two_sockets() -> Vec<HostNode> {
        let node = |id, cpus: [usize; 4], distances: [u8; 2]| HostNode {
            id,
            cpus: cpus.to_vec(),
            distances: distances.to_vec(),
        };
        vec![
            node(0, [0, 1, 2, 3], [10, 21]),
            node(1, [4, 5, 6, 7], [21, 10]),
        ]
    }

    fn on_two_sockets(cpus: &str, room: Room) -> Result<Option<Numa>, BindingError> {
        let processors = Processors::from(room.most.vcpus);
        let cpus: CpuSet = cpus.parse().unwrap();
        let bound = Bound {
            room,
            backing: MemoryBacking::Normal,
            processors: &processors,
            cpus: &cpus,
        };
        numa(&two_sockets(), &bound)
    }

    #[test]
    fn cpus_are_a_containers_own_when_they_are_as_many_as_it_asks_for() {
        for own in [
            share("2-3", Some(2000), Some(2048)),
            share("2-3", None, Some(2048)),
        ] {
            assert_eq!(own.exclusive_cpus().unwrap().to_string(), "2-3");
        }
        for (shared, part) in [
            (share("", Some(2000), None), "names no CPUs"),
            (share("0-3", Some(2000), None), "a limit of 2000m"),
            (share("0-1", Some(1500), None), "a limit of 1500m"),
            (share("0-1", None, Some(2)), "no limit"),
        ] {
            let error = shared.exclusive_cpus().unwrap_err().to_string();
            assert!(error.contains("podvisor.io/cpu-pinning"), "{error}");
            assert!(error.contains(part), "no {part:?} in {error}");
        }
    }

    #[test]
    fn containers_come_one_after_the_other_until_the_pod_has_all() {
        let two = share("2-3", Some(2000), None);
        let one = share("5", Some(1000), None);
        assert!(pinned(3000).check([&two], count(3)).is_ok());
        assert!(pinned(3000).check([&two, &one], count(3)).is_ok());
        for binding in [pinned(2000), pinned(0)] {
            let error = binding.check([&two], count(3)).unwrap_err().to_string();
            assert!(
                error.contains("3 vCPUs") && error.contains("2 exclusive CPUs (2-3)"),
                "{error}"
            );
        }
        let nobody = share("", None, None);
        assert!(pinned(3000).check([&two, &nobody], count(3)).is_err());
        assert!(Binding::default().check([&nobody], count(3)).is_ok());
    }

    #[test]
    fn each_processor_has_a_cpu_or_those_of_its_node() {
        let cpus: CpuSet = "2-3,5".parse().unwrap();
        assert_eq!(pinned(0).vcpus(&cpus), [[2], [3], [5]]);
        assert!(Binding::default().vcpus(&cpus).is_empty());
        let numa = on_two_sockets("2-3,5", room(3, 3, true)).unwrap();
        let free = Binding {
            numa,
            nodes: two_sockets(),
            ..Binding::default()
        };
        assert_eq!(free.vcpus(&cpus), [vec![2, 3], vec![2, 3], vec![5]]);
        let bound = Binding {
            is_pinned: true,
            ..free
        };
        assert_eq!(bound.vcpus(&cpus), [[2], [3], [5]]);
    }

    #[test]
    fn nodes_that_the_guest_cannot_have_are_refused() {
        assert!(on_two_sockets("4-5", room(2, 2, false)).unwrap().is_some());
        let error = on_two_sockets("3-4", room(2, 2, false)).unwrap_err();
        assert!(matches!(error, BindingError::OneNode(2)), "{error}");
        let error = on_two_sockets("3-4", room(2, 4, true)).unwrap_err();
        assert!(matches!(error, BindingError::Growing(2)), "{error}");
        assert!(on_two_sockets("4-5", room(2, 4, true)).unwrap().is_some());
    }
}
