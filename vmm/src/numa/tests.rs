use super::*;
use crate::config::Vcpus;

const GIB: u64 = 1 << 30;

fn node(memory_len: u64, vcpus: &[u8], distances: &[u8]) -> NumaNode {
    NumaNode {
        memory_len,
        vcpus: vcpus.to_vec(),
        host_node: Some(7),
        distances: distances.to_vec(),
    }
}

fn numa(nodes: Vec<NumaNode>, memory_len: u64, vcpus: u32) -> Result<Numa, NumaError> {
    let memory = MemorySize::from_bytes(memory_len).unwrap();
    let processors = Vcpus::try_from(vcpus).unwrap().into();
    Numa::new(nodes, memory, MemoryBacking::Normal, &processors)
}

#[test]
fn a_node_may_lie_on_both_sides_of_the_device_hole() {
    let nodes = vec![
        node(2 * GIB, &[0], &[10, 20, 20]),
        node(2 * GIB, &[1], &[20, 10, 20]),
        node(4 * GIB, &[2], &[20, 20, 10]),
    ];
    let numa = numa(nodes, 8 * GIB, 3).unwrap();
    let pieces = numa.memory();
    let pieces: Vec<_> = pieces
        .iter()
        .map(|p| (p.node, p.range.base / GIB, p.range.len / GIB))
        .collect();
    assert_eq!(pieces, [(0, 0, 2), (1, 2, 1), (1, 4, 1), (2, 5, 4)]);
}

#[test]
fn nodes_have_all_of_the_machine_and_nothing_twice() {
    let two = |a: NumaNode, b: NumaNode| numa(vec![a, b], 2 * GIB, 2);
    let good = |vcpus: &[u8]| node(GIB, vcpus, &[10, 20]);
    let far = |vcpus: &[u8]| node(GIB, vcpus, &[20, 10]);
    assert!(two(good(&[0]), far(&[1])).is_ok());
    assert!(two(good(&[]), far(&[1, 0])).is_ok());
    assert_eq!(two(good(&[0]), far(&[0])), Err(NumaError::Vcpu(0)));
    assert_eq!(two(good(&[0]), far(&[])), Err(NumaError::Vcpu(1)));
    assert_eq!(two(good(&[0, 1]), far(&[2])), Err(NumaError::Vcpu(2)));
    let larger = node(2 * GIB, &[0], &[10, 20]);
    let memory = NumaError::Memory {
        nodes: 3 * GIB,
        machine: 2 * GIB,
    };
    assert_eq!(two(larger, far(&[1])), Err(memory));
    for len in [0, 4097] {
        let broken = two(node(len, &[0], &[10, 20]), far(&[1]));
        assert!(matches!(broken, Err(NumaError::NodeMemory { node: 0, .. })));
    }
    assert_eq!(numa(Vec::new(), GIB, 1), Err(NumaError::Count(0)));
}

#[test]
fn distances_are_a_symmetric_table() {
    let with = |first: &[u8], second: &[u8]| {
        numa(
            vec![node(GIB, &[0], first), node(GIB, &[1], second)],
            2 * GIB,
            2,
        )
    };
    assert!(with(&[10, 21], &[21, 10]).is_ok());
    assert_eq!(with(&[10, 21], &[20, 10]), Err(NumaError::Distances(0)));
    assert_eq!(with(&[10, 10], &[10, 10]), Err(NumaError::Distances(0)));
    assert_eq!(with(&[11, 21], &[21, 10]), Err(NumaError::Distances(0)));
    assert_eq!(with(&[10, 21], &[21, 10, 10]), Err(NumaError::Distances(1)));
    assert_eq!(with(&[10], &[21, 10]), Err(NumaError::Distances(0)));
}
