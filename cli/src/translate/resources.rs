//! Limits and requests as control groups have them (pkg/kubelet/cm/helpers_linux.go and
//! pkg/kubelet/kuberuntime of Kubernetes).

use podvisor_proto::cri::v1::LinuxContainerResources;
use podvisor_proto::quantity::Quantity;

use crate::manifest::container::{Container, Resources};
use crate::manifest::pod::{PodSpec, ResourceList};

/// Length of a period of CPU time in microseconds.
const CPU_PERIOD_US: i64 = 100_000;
/// Least quota that the kernel takes, in microseconds.
const CPU_QUOTA_MIN_US: i64 = 1000;
/// Shares of one CPU.
const SHARES_PER_CPU: i64 = 1024;
/// Bounds of shares in control groups of version 1.
const SHARES_MIN: i64 = 2;
const SHARES_MAX: i64 = 262_144;

/// How much a pod's resources are guaranteed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

/// What a pod's own control group is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodLimits {
    /// Of `cpu.weight`, 1..=10000.
    pub cpu_weight: i64,
    /// Microseconds a period, and the period; `None` without a limit.
    pub cpu_max: Option<(i64, i64)>,
    /// Bytes; `None` without a limit.
    pub memory_max: Option<i64>,
}

/// The quality-of-service class of a pod.
pub fn qos(spec: &PodSpec) -> Qos {
    let containers = || spec.containers.iter().chain(&spec.init_containers);
    let none = ResourceList::default();
    let guaranteed = |resources: &Resources| {
        let Resources { limits, requests } = *resources;
        limits.cpu.is_some()
            && limits.memory.is_some()
            && requests.cpu.is_none_or(|cpu| Some(cpu) == limits.cpu)
            && requests
                .memory
                .is_none_or(|memory| Some(memory) == limits.memory)
    };
    if containers().all(|c| c.resources.limits == none && c.resources.requests == none) {
        Qos::BestEffort
    } else if containers().all(|c| guaranteed(&c.resources)) {
        Qos::Guaranteed
    } else {
        Qos::Burstable
    }
}

/// Resources of a container.
pub fn of_container(resources: &Resources, qos: Qos, node_memory: i64) -> LinuxContainerResources {
    let Resources { limits, requests } = *resources;
    let memory_limit = limits.memory.map_or(0, Quantity::units);
    LinuxContainerResources {
        oom_score_adj: oom_score_adj(requests.memory.or(limits.memory), qos, node_memory),
        // No swap: memory and swap together have the same limit.
        memory_swap_limit_in_bytes: memory_limit,
        unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
        ..linux_resources(requests.cpu.or(limits.cpu), limits.cpu, limits.memory)
    }
}

/// Sum of a pod's containers, as a sandbox is told it.
pub fn of_sandbox(spec: &PodSpec) -> LinuxContainerResources {
    let cpu_request = total(spec, |r| {
        r.requests.cpu.or(r.limits.cpu).map(Quantity::milli)
    });
    let cpu_limit = total(spec, |r| r.limits.cpu.map(Quantity::milli));
    let memory_limit = total(spec, |r| r.limits.memory.map(Quantity::units));
    from_sums(cpu_request.sum, cpu_limit.sum, memory_limit.sum)
}

/// What a RuntimeClass adds.
pub fn of_overhead(overhead: &ResourceList) -> LinuxContainerResources {
    linux_resources(overhead.cpu, overhead.cpu, overhead.memory)
}

/// Limits of the pod's own control group. There is a limit only when every container has one.
pub fn pod_limits(spec: &PodSpec, overhead: &ResourceList) -> PodLimits {
    let cpu_overhead = overhead.cpu.map_or(0, Quantity::milli);
    let memory_overhead = overhead.memory.map_or(0, Quantity::units);
    let cpu_request = total(spec, |r| {
        r.requests.cpu.or(r.limits.cpu).map(Quantity::milli)
    });
    let cpu_limit = total(spec, |r| r.limits.cpu.map(Quantity::milli));
    let memory_limit = total(spec, |r| r.limits.memory.map(Quantity::units));
    let shares = cpu_shares(cpu_request.sum.saturating_add(cpu_overhead));
    PodLimits {
        cpu_weight: 1 + (shares - SHARES_MIN) * 9999 / (SHARES_MAX - SHARES_MIN),
        cpu_max: cpu_limit
            .of_all()
            .map(|milli| (cpu_quota(milli.saturating_add(cpu_overhead)), CPU_PERIOD_US)),
        memory_max: memory_limit
            .of_all()
            .map(|bytes| bytes.saturating_add(memory_overhead)),
    }
}

/// A resource of a pod's containers together.
struct Total {
    sum: i64,
    complete: bool,
}

impl Total {
    /// The sum, if every container says something.
    fn of_all(&self) -> Option<i64> {
        self.complete.then_some(self.sum)
    }
}

/// Containers run side by side, init containers one at a time before them: the larger need counts.
fn total(spec: &PodSpec, amount: impl Fn(&Resources) -> Option<i64>) -> Total {
    let amounts = |containers: &[Container]| -> Vec<Option<i64>> {
        containers
            .iter()
            .map(|container| amount(&container.resources))
            .collect()
    };
    let (side_by_side, in_turn) = (amounts(&spec.containers), amounts(&spec.init_containers));
    let sum = side_by_side
        .iter()
        .flatten()
        .fold(0_i64, |sum, amount| sum.saturating_add(*amount));
    let largest = in_turn.iter().flatten().copied().max().unwrap_or(0);
    Total {
        sum: sum.max(largest),
        complete: side_by_side.iter().chain(&in_turn).all(Option::is_some),
    }
}

fn linux_resources(
    cpu_request: Option<Quantity>,
    cpu_limit: Option<Quantity>,
    memory_limit: Option<Quantity>,
) -> LinuxContainerResources {
    from_sums(
        cpu_request.map_or(0, Quantity::milli),
        cpu_limit.map_or(0, Quantity::milli),
        memory_limit.map_or(0, Quantity::units),
    )
}

/// From thousandths of CPUs and bytes; 0 where nothing is said.
fn from_sums(cpu_request: i64, cpu_limit: i64, memory_limit: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_shares: cpu_shares(cpu_request),
        cpu_period: CPU_PERIOD_US,
        cpu_quota: if cpu_limit == 0 {
            0
        } else {
            cpu_quota(cpu_limit)
        },
        memory_limit_in_bytes: memory_limit,
        ..LinuxContainerResources::default()
    }
}

fn cpu_shares(milli: i64) -> i64 {
    (milli.saturating_mul(SHARES_PER_CPU) / 1000).clamp(SHARES_MIN, SHARES_MAX)
}

fn cpu_quota(milli: i64) -> i64 {
    (milli.saturating_mul(CPU_PERIOD_US) / 1000).max(CPU_QUOTA_MIN_US)
}

/// How soon the kernel takes this container when memory runs out (pkg/kubelet/qos/policy.go).
fn oom_score_adj(memory_request: Option<Quantity>, qos: Qos, node_memory: i64) -> i64 {
    match qos {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let request = memory_request.map_or(0, Quantity::units);
            let share = request.saturating_mul(1000) / node_memory.max(1);
            (1000_i64.saturating_sub(share)).clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::manifest;
    use super::*;

    const TWO: &str = "
  containers:
  - {name: a, image: i, resources: {limits: {cpu: 500m, memory: 64Mi}}}
  - {name: b, image: i, resources: {limits: {cpu: 1, memory: 32Mi}}}
  initContainers:
  - {name: c, image: i, resources: {limits: {cpu: 2, memory: 16Mi}}}
";

    fn spec(text: &str) -> PodSpec {
        manifest(text, "").pod.spec
    }

    #[test]
    fn a_pod_is_the_sum_of_its_containers_or_its_largest_init_container() {
        let sum = of_sandbox(&spec(TWO));
        assert_eq!(sum.cpu_quota, 200_000);
        assert_eq!(sum.memory_limit_in_bytes, 96 << 20);
        assert_eq!(sum.cpu_shares, 2048);
    }

    #[test]
    fn overhead_counts_for_the_pods_own_group() {
        let overhead = ResourceList {
            cpu: Some("250m".parse().unwrap()),
            memory: Some("40Mi".parse().unwrap()),
        };
        let limits = pod_limits(&spec(TWO), &overhead);
        assert_eq!(limits.memory_max, Some(136 << 20));
        assert_eq!(limits.cpu_max, Some((225_000, 100_000)));
    }

    #[test]
    fn one_container_without_limit_lifts_the_pods() {
        let limits = pod_limits(
            &spec(
                "
  containers:
  - {name: a, image: i, resources: {limits: {cpu: 500m, memory: 64Mi}}}
  - {name: b, image: i, resources: {limits: {cpu: 500m}}}
",
            ),
            &ResourceList::default(),
        );
        assert_eq!(limits.memory_max, None);
        assert_eq!(limits.cpu_max, Some((100_000, 100_000)));
    }

    #[test]
    fn weight_follows_requests() {
        let none = pod_limits(
            &spec("  containers: [{name: a, image: i}]"),
            &ResourceList::default(),
        );
        assert_eq!(
            none,
            PodLimits {
                cpu_weight: 1,
                cpu_max: None,
                memory_max: None
            }
        );
        let one = spec("  containers: [{name: a, image: i, resources: {requests: {cpu: 1}}}]");
        assert_eq!(pod_limits(&one, &ResourceList::default()).cpu_weight, 39);
    }

    #[test]
    fn classes_and_oom_scores_are_those_of_the_kubelet() {
        assert_eq!(qos(&spec(TWO)), Qos::Guaranteed);
        assert_eq!(
            qos(&spec("  containers: [{name: a, image: i}]")),
            Qos::BestEffort
        );
        let burstable =
            spec("  containers: [{name: a, image: i, resources: {requests: {memory: 1Gi}}}]");
        assert_eq!(qos(&burstable), Qos::Burstable);
        let resources = of_container(&burstable.containers[0].resources, Qos::Burstable, 8 << 30);
        assert_eq!(resources.oom_score_adj, 875);
        assert_eq!(resources.memory_limit_in_bytes, 0);
    }

    #[test]
    fn a_tiny_limit_keeps_the_least_quota() {
        let tiny = spec("  containers: [{name: a, image: i, resources: {limits: {cpu: 1m}}}]");
        let resources = of_container(&tiny.containers[0].resources, Qos::Burstable, 8 << 30);
        assert_eq!((resources.cpu_quota, resources.cpu_shares), (1000, 2));
    }
}
