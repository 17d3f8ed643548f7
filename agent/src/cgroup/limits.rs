//! OCI resources as files of cgroup v2, converted as runc does, so that a pod's
//! limits mean the same under both runtimes.

use crate::oci::{Cpu, Memory, Resources};

/// Default of cpu.cfs_period_us, for a quota given without a period.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// One file and the text to write into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Name within the cgroup.
    pub file: String,
    /// New content.
    pub value: String,
}

impl Limit {
    /// Whether a guest that does not have the file keeps to the limit all the same: the guest's
    /// kernel has no swap, and a container that may have none of some size of huge pages misses
    /// nothing where that size does not exist.
    #[must_use]
    pub fn is_met_by_absence(&self) -> bool {
        let huge_pages = self.file.starts_with("hugetlb.") && self.value == "0";
        self.file == "memory.swap.max" || huge_pages
    }
}

/// The writes that put `resources` in force, in order.
#[must_use]
pub fn writes(resources: &Resources) -> Vec<Limit> {
    let mut writes = Vec::new();
    let mut push = |file: &str, value: String| {
        writes.push(Limit {
            file: file.to_owned(),
            value,
        })
    };
    if let Some(memory) = &resources.memory {
        memory_writes(memory, &mut push);
    }
    if let Some(cpu) = &resources.cpu {
        cpu_writes(cpu, &mut push);
    }
    if let Some(pids) = &resources.pids {
        let unlimited = pids.limit <= 0;
        push(
            "pids.max",
            if unlimited {
                "max".to_owned()
            } else {
                pids.limit.to_string()
            },
        );
    }
    for limit in &resources.hugepage_limits {
        push(
            &format!("hugetlb.{}.max", limit.page_size),
            limit.limit.to_string(),
        );
    }
    for (file, value) in &resources.unified {
        push(file, value.clone());
    }
    writes
}

fn memory_writes(memory: &Memory, push: &mut impl FnMut(&str, String)) {
    if let Some(reservation) = memory.reservation.filter(|bytes| *bytes != 0) {
        push("memory.low", bytes_or_max(reservation));
    }
    // cgroup v1 counts swap together with memory, v2 by itself.
    let limit = memory.limit.filter(|bytes| *bytes != 0);
    match (memory.swap.filter(|bytes| *bytes != 0), limit) {
        (Some(swap), _) if swap < 0 => push("memory.swap.max", "max".to_owned()),
        (Some(swap), Some(limit)) if limit > 0 => {
            push(
                "memory.swap.max",
                swap.saturating_sub(limit).max(0).to_string(),
            );
        }
        _ => {}
    }
    if let Some(limit) = limit {
        push("memory.max", bytes_or_max(limit));
    }
}

fn cpu_writes(cpu: &Cpu, push: &mut impl FnMut(&str, String)) {
    if let Some(idle) = cpu.idle {
        push("cpu.idle", idle.to_string());
    }
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        push("cpu.weight", weight_of_shares(shares).to_string());
    }
    // The kernel refuses a burst above the quota in force, so a smaller burst
    // goes first and a greater one last; zero can only be smaller.
    if cpu.burst == Some(0) {
        push("cpu.max.burst", "0".to_owned());
    }
    if cpu.quota.is_some() || cpu.period.is_some() {
        let quota = cpu.quota.filter(|quota| *quota > 0);
        let quota = quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
        let period = cpu
            .period
            .filter(|period| *period != 0)
            .unwrap_or(DEFAULT_PERIOD_US);
        push("cpu.max", format!("{quota} {period}"));
    }
    if let Some(burst) = cpu.burst.filter(|burst| *burst != 0) {
        push("cpu.max.burst", burst.to_string());
    }
    if !cpu.cpus.is_empty() {
        push("cpuset.cpus", cpu.cpus.clone());
    }
    if !cpu.mems.is_empty() {
        push("cpuset.mems", cpu.mems.clone());
    }
}

fn bytes_or_max(bytes: i64) -> String {
    if bytes < 0 {
        "max".to_owned()
    } else {
        bytes.to_string()
    }
}

/// cgroup v1's shares (2..262144) as cgroup v2's weight (1..10000), so that the defaults of both,
/// 1024 and 100, mean each other: 10^((log2(shares)^2 + 125 log2(shares)) / 612 - 7/34), rounded up
/// (opencontainers/cgroups, `ConvertCPUSharesToCgroupV2Value`; runc 1.3 and later).
fn weight_of_shares(shares: u64) -> u64 {
    const SHARES_MAX: u32 = 262_144;
    let shares = u32::try_from(shares).map_or(SHARES_MAX, |shares| shares.clamp(2, SHARES_MAX));
    let exponent = f64::from(shares).log2();
    let power = (exponent * exponent + 125.0 * exponent) / 612.0 - 7.0 / 34.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 1 and 10,000"
    )]
    let weight = 10_f64.powf(power).ceil() as u64;
    weight.clamp(1, 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::parse_resources;

    fn written(json: &str) -> Vec<(String, String)> {
        let resources = parse_resources(json.as_bytes()).unwrap();
        writes(&resources)
            .into_iter()
            .map(|limit| (limit.file, limit.value))
            .collect()
    }

    fn pair(file: &str, value: &str) -> (String, String) {
        (file.to_owned(), value.to_owned())
    }

    #[test]
    fn shares_become_weights_as_runc_converts_them() {
        assert_eq!(weight_of_shares(2), 1);
        assert_eq!(weight_of_shares(1024), 100);
        assert_eq!(weight_of_shares(512), 59);
        assert_eq!(weight_of_shares(262_144), 10_000);
        assert_eq!(weight_of_shares(u64::MAX), 10_000);
        assert_eq!(weight_of_shares(1), 1);
    }

    #[test]
    fn what_the_kubelet_sends_becomes_these_files() {
        let json = r#"{"memory":{"limit":67108864,"swap":67108864},
            "cpu":{"shares":512,"quota":50000,"period":100000},"pids":{"limit":100}}"#;
        assert_eq!(
            written(json),
            [
                pair("memory.swap.max", "0"),
                pair("memory.max", "67108864"),
                pair("cpu.weight", "59"),
                pair("cpu.max", "50000 100000"),
                pair("pids.max", "100"),
            ]
        );
    }

    #[test]
    fn minus_one_means_no_limit() {
        let json = r#"{"memory":{"limit":-1,"swap":-1},"cpu":{"quota":-1},"pids":{"limit":-1}}"#;
        assert_eq!(
            written(json),
            [
                pair("memory.swap.max", "max"),
                pair("memory.max", "max"),
                pair("cpu.max", "max 100000"),
                pair("pids.max", "max"),
            ]
        );
    }

    #[test]
    fn empty_resources_write_nothing() {
        assert!(written("{}").is_empty());
        assert!(written(r#"{"memory":{"limit":0},"cpu":{"shares":0}}"#).is_empty());
    }

    #[test]
    fn unified_files_are_written_as_they_are() {
        assert_eq!(
            written(r#"{"unified":{"memory.high":"1M"}}"#),
            [pair("memory.high", "1M")]
        );
    }
}
