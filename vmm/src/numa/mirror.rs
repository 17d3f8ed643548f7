//! Makes the guest's nodes after the host's.

use thiserror::Error;

use super::{HostNode, LOCAL_DISTANCE, Numa, NumaError, NumaNode};
use crate::config::MemorySize;
use crate::memory::MemoryBacking;
use crate::processors::Processors;

/// Pieces of memory that nodes share: what a guest plugs and KVM maps at once.
const SHARE: u64 = 2 << 20;
/// The farthest that is not unreachable.
const MAX_DISTANCE: u8 = 254;

/// A guest after the image of its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The guest's nodes.
    pub numa: Numa,
    /// The pod's processors of the host, by the guest's nodes. Where there are as many as the guest's, they
    /// can be pinned one to one in this order.
    pub host_cpus: Vec<Vec<usize>>,
}

/// Why there is no image of the host.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MirrorError {
    /// None of the host's nodes has one of the pod's processors.
    #[error("none of the host's {0} NUMA nodes has a CPU of the pod")]
    NoNode(usize),
    /// The pod is too small to be shared out.
    #[error("the pod cannot be shared out over the host's nodes")]
    Nodes(#[from] NumaError),
}

/// A guest with a node for each of the host's `nodes` that has processors of `cpuset`, and as
/// large a part of memory and processors as the node has of these.
///
/// # Errors
/// [`MirrorError`] when no node has one, or the machine is too small to have as many nodes.
pub fn mirror(
    nodes: &[HostNode],
    cpuset: &[usize],
    memory: MemorySize,
    backing: MemoryBacking,
    processors: &Processors,
) -> Result<Mirror, MirrorError> {
    let of_pod = |node: &HostNode| -> Vec<usize> {
        let cpus = node.cpus.iter().copied();
        cpus.filter(|cpu| cpuset.contains(cpu)).collect()
    };
    let possible = usize::from(processors.possible().get());
    let used = nodes.iter().enumerate().map(|(index, node)| Used {
        index,
        id: node.id,
        cpus: of_pod(node),
    });
    let mut used: Vec<Used> = used.filter(|node| !node.cpus.is_empty()).collect();
    if used.is_empty() {
        return Err(MirrorError::NoNode(nodes.len()));
    }
    // A node without a processor of its own is of no use to the guest.
    used.truncate(possible);
    let weights: Vec<_> = used.iter().map(|node| node.cpus.len()).collect();
    let page_len = backing.page_len().max(SHARE);
    let pages = memory.bytes() / page_len;
    let shares = share(pages, &weights);
    let mut vcpus = 0..processors.possible().get();
    let mut guest = Vec::with_capacity(used.len());
    for ((node, pages), count) in used
        .iter()
        .zip(shares)
        .zip(share(possible as u64, &weights))
    {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        guest.push(NumaNode {
            memory_len: pages * page_len,
            vcpus: vcpus.by_ref().take(count).collect(),
            host_node: Some(node.id),
            distances: used.iter().map(|to| distance(nodes, node, to)).collect(),
        });
    }
    if let Some(last) = guest.last_mut() {
        // What is left of a broken page.
        last.memory_len += memory.bytes() - pages * page_len;
    }
    let numa = Numa::new(guest, memory, backing, processors)?;
    let host_cpus = used.into_iter().map(|node| node.cpus).collect();
    Ok(Mirror { numa, host_cpus })
}

/// A node of the host that the guest has one for.
struct Used {
    /// Its place among the host's.
    index: usize,
    id: u32,
    cpus: Vec<usize>,
}

fn distance(nodes: &[HostNode], from: &Used, to: &Used) -> u8 {
    if from.index == to.index {
        return LOCAL_DISTANCE;
    }
    let told = |from: &Used, to: &Used| {
        let distances = nodes.get(from.index).map(|node| &node.distances);
        distances
            .and_then(|distances| distances.get(to.index))
            .copied()
    };
    // ACPI's table, unlike some hosts', is the same both ways.
    let far = told(from, to).max(told(to, from)).unwrap_or_default();
    far.clamp(LOCAL_DISTANCE + 1, MAX_DISTANCE)
}

/// Shares out `total` by `weights`: whole numbers, one for each as long as there are some.
fn share(total: u64, weights: &[usize]) -> Vec<u64> {
    let mut weight_left: u64 = weights.iter().map(|&weight| weight as u64).sum();
    let mut left = total;
    let mut after = weights.len() as u64;
    let mut shares = Vec::with_capacity(weights.len());
    for &weight in weights {
        after -= 1;
        let weight = weight as u64;
        let part = (left * weight + weight_left / 2) / weight_left.max(1);
        let most = left.saturating_sub(after);
        let part = part.max(1).min(most.max(u64::from(left > 0)));
        shares.push(part);
        left -= part;
        weight_left -= weight;
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Vcpus;

    fn node(id: u32, cpus: &[usize], distances: &[u8]) -> HostNode {
        HostNode {
            id,
            cpus: cpus.to_vec(),
            distances: distances.to_vec(),
        }
    }

    fn two_sockets() -> Vec<HostNode> {
        vec![
            node(0, &[0, 1, 2, 3], &[10, 21]),
            node(1, &[4, 5, 6, 7], &[21, 10]),
        ]
    }

    fn made(
        nodes: &[HostNode],
        cpuset: &[usize],
        vcpus: u32,
        mib: u64,
    ) -> Result<Mirror, MirrorError> {
        let memory = MemorySize::from_bytes(mib << 20).unwrap();
        let processors = Vcpus::try_from(vcpus).unwrap().into();
        mirror(nodes, cpuset, memory, MemoryBacking::Normal, &processors)
    }

    #[test]
    fn parts_are_as_large_as_the_hosts() {
        let mirror = made(&two_sockets(), &[1, 4, 5, 6], 4, 1024).unwrap();
        let [first, second] = mirror.numa.nodes() else {
            panic!("two nodes");
        };
        assert_eq!(
            (first.memory_len, second.memory_len),
            (256 << 20, 768 << 20)
        );
        assert_eq!(
            (&first.vcpus[..], &second.vcpus[..]),
            (&[0][..], &[1, 2, 3][..])
        );
        assert_eq!((first.host_node, second.host_node), (Some(0), Some(1)));
        assert_eq!(first.distances, [10, 21]);
        assert_eq!(mirror.host_cpus, [vec![1], vec![4, 5, 6]]);
    }

    #[test]
    fn a_pod_on_one_node_has_one_node_on_it() {
        let mirror = made(&two_sockets(), &[5, 7], 2, 512).unwrap();
        let [only] = mirror.numa.nodes() else {
            panic!("one node");
        };
        assert_eq!((only.host_node, only.memory_len), (Some(1), 512 << 20));
        assert_eq!(only.distances, [10]);
    }

    #[test]
    fn a_pod_with_fewer_vcpus_than_nodes_has_no_node_without_one() {
        let mirror = made(&two_sockets(), &[0, 4], 1, 64).unwrap();
        assert_eq!(mirror.numa.nodes().len(), 1);
    }

    #[test]
    fn a_pod_on_no_node_is_refused() {
        assert_eq!(made(&[], &[0], 1, 64), Err(MirrorError::NoNode(0)));
        let nowhere = made(&two_sockets(), &[64], 1, 64);
        assert_eq!(nowhere, Err(MirrorError::NoNode(2)));
    }

    #[test]
    fn distances_are_made_whole() {
        let odd = [
            node(0, &[0], &[10, 15]),
            node(3, &[1], &[20, 10]),
            node(5, &[2], &[]),
        ];
        let mirror = made(&odd, &[0, 1, 2], 3, 64).unwrap();
        let distances: Vec<_> = mirror
            .numa
            .nodes()
            .iter()
            .map(|n| &n.distances[..])
            .collect();
        assert_eq!(distances, [[10, 20, 11], [20, 10, 11], [11, 11, 10]]);
    }

    proptest! {
        #[test]
        fn every_pod_on_some_node_has_an_image(
            counts in proptest::collection::vec(1_usize..6, 1..6),
            vcpus in 1_u32..40,
            pages in 8192_u64..300_000,
        ) {
            let mut next = 0;
            let nodes: Vec<_> = (0..).zip(&counts).map(|(id, &count)| {
                let cpus: Vec<_> = (next..next + count).collect();
                next += count;
                node(id, &cpus, &vec![11; counts.len()])
            }).collect();
            let cpuset: Vec<_> = (0..next).collect();
            let memory = MemorySize::from_bytes(pages * 4096).unwrap();
            let processors = Vcpus::try_from(vcpus).unwrap().into();
            let made = mirror(&nodes, &cpuset, memory, MemoryBacking::Normal, &processors);
            let made = made.map_err(|error| TestCaseError::fail(error.to_string()))?;
            let nodes = made.numa.nodes();
            prop_assert!(nodes.iter().all(|node| !node.vcpus.is_empty()));
            let seen: u64 = made.numa.memory().iter().map(|piece| piece.range.len).sum();
            prop_assert_eq!(seen, memory.bytes());
        }
    }
}
