//! Nodes of memory and processors that are close to each other, as the guest sees them, and the
//! host's nodes behind them.

mod host;
mod mirror;

use thiserror::Error;

pub use host::{HostNode, HostNodesError};
pub use mirror::{Mirror, MirrorError, mirror};

use crate::arch::layout::{self, Range};
use crate::config::MemorySize;
use crate::memory::MemoryBacking;
use crate::processors::Processors;

/// Distances of ACPI's locality table: a node from itself.
pub const LOCAL_DISTANCE: u8 = 10;

/// A node of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NumaNode {
    /// Its memory in bytes. Nodes share the guest's memory in their order, from address 0 up.
    pub memory_len: u64,
    /// Its processors by number, those that can be plugged included.
    pub vcpus: Vec<u8>,
    /// The host's node that its memory is on. `None` leaves the choice to the host.
    pub host_node: Option<u32>,
    /// How far it is to each node, in their order: 10 to itself, more to others.
    pub distances: Vec<u8>,
}

/// Nodes that a machine cannot have.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NumaError {
    /// None, or too many.
    #[error("{0} nodes: a machine has 1 to {max}", max = Numa::MAX_NODES)]
    Count(usize),
    /// Their memory together is not the machine's.
    #[error("nodes with {nodes} bytes of memory for a machine with {machine}")]
    Memory {
        /// The nodes'.
        nodes: u64,
        /// The machine's.
        machine: u64,
    },
    /// A node has no memory, or a part of a page.
    #[error("node {node} with {len} bytes of memory: a node has whole pages of {page_len}")]
    NodeMemory {
        /// Which node.
        node: usize,
        /// How much it has.
        len: u64,
        /// What it has to have a multiple of.
        page_len: u64,
    },
    /// A processor is in no node, or in two, or there is no such processor.
    #[error("vCPU {0} is not in exactly one node, or does not exist")]
    Vcpu(u8),
    /// The distances are no table.
    #[error(
        "node {0} needs a distance to each node: {LOCAL_DISTANCE} to itself, more to others, the same back"
    )]
    Distances(usize),
}

/// The nodes of one machine, which have all of its memory and processors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numa {
    nodes: Vec<NumaNode>,
}

/// Memory of one node in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeMemory {
    /// The guest's node.
    pub node: usize,
    /// Where it is.
    pub range: Range,
    /// The host's node.
    pub host_node: Option<u32>,
}

impl Numa {
    /// As many as Linux is built for by default on small machines (`NODES_SHIFT` 6).
    pub const MAX_NODES: usize = 64;

    /// Nodes for a machine with `memory` and `processors`.
    ///
    /// # Errors
    /// [`NumaError`] when they are not its nodes.
    pub fn new(
        nodes: Vec<NumaNode>,
        memory: MemorySize,
        backing: MemoryBacking,
        processors: &Processors,
    ) -> Result<Self, NumaError> {
        if !(1..=Self::MAX_NODES).contains(&nodes.len()) {
            return Err(NumaError::Count(nodes.len()));
        }
        check_memory(&nodes, memory, backing.page_len())?;
        check_vcpus(&nodes, processors.possible().get())?;
        check_distances(&nodes)?;
        Ok(Self { nodes })
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[NumaNode] {
        &self.nodes
    }

    /// The pieces of memory, from address 0 up: a node may lie on both sides of the device hole.
    #[must_use]
    pub fn memory(&self) -> Vec<NodeMemory> {
        let total = self.nodes.iter().map(|node| node.memory_len).sum();
        let mut rests = layout::ram_ranges(total).into_iter();
        let mut rest = rests.next();
        let mut pieces = Vec::new();
        for (number, node) in self.nodes.iter().enumerate() {
            let mut wanted = node.memory_len;
            while let Some(range) = rest.filter(|_| wanted > 0) {
                let taken = Range {
                    base: range.base,
                    len: wanted.min(range.len),
                };
                pieces.push(NodeMemory {
                    node: number,
                    range: taken,
                    host_node: node.host_node,
                });
                wanted -= taken.len;
                let left = Range {
                    base: taken.end(),
                    len: range.len - taken.len,
                };
                rest = if left.len > 0 {
                    Some(left)
                } else {
                    rests.next()
                };
            }
        }
        pieces
    }
}

fn check_memory(nodes: &[NumaNode], memory: MemorySize, page_len: u64) -> Result<(), NumaError> {
    let lens = || nodes.iter().map(|node| node.memory_len);
    let broken = lens().position(|len| len == 0 || !len.is_multiple_of(page_len));
    if let Some((node, len)) = broken.zip(broken.and_then(|node| lens().nth(node))) {
        return Err(NumaError::NodeMemory {
            node,
            len,
            page_len,
        });
    }
    let (sum, machine) = (lens().fold(0, u64::saturating_add), memory.bytes());
    if sum == machine {
        Ok(())
    } else {
        Err(NumaError::Memory {
            nodes: sum,
            machine,
        })
    }
}

fn check_vcpus(nodes: &[NumaNode], possible: u8) -> Result<(), NumaError> {
    let mut named: Vec<_> = nodes.iter().flat_map(|node| &node.vcpus).copied().collect();
    named.sort_unstable();
    let mut expected = 0..possible;
    for vcpu in &named {
        match expected.next() {
            Some(number) if number == *vcpu => {}
            // Either the expected one is missing, or this one is named again.
            Some(number) => return Err(NumaError::Vcpu(number.min(*vcpu))),
            None => return Err(NumaError::Vcpu(*vcpu)),
        }
    }
    expected
        .next()
        .map_or(Ok(()), |number| Err(NumaError::Vcpu(number)))
}

fn check_distances(nodes: &[NumaNode]) -> Result<(), NumaError> {
    let distance = |from: usize, to: usize| nodes.get(from)?.distances.get(to).copied();
    for (from, node) in nodes.iter().enumerate() {
        let is_right = |to: usize| match distance(from, to) {
            Some(LOCAL_DISTANCE) => from == to,
            Some(far) => far > LOCAL_DISTANCE && from != to && distance(to, from) == Some(far),
            None => false,
        };
        if node.distances.len() != nodes.len() || !(0..nodes.len()).all(is_right) {
            return Err(NumaError::Distances(from));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
