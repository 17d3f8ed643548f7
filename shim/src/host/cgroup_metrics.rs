//! What a group of the cgroup tree (version 2) uses, as containerd's `io.containerd.cgroups.v2.Metrics`.

use std::fs;
use std::path::Path;

use podvisor_proto::cgroups::{CpuStat, MemoryEvents, MemoryStat, Metrics, PidsStat};

use super::cgroup::CgroupError;
use crate::pod::cgroup_path::ROOT;

/// The metrics of the group `leaf` (relative to the root).
///
/// # Errors
/// [`CgroupError::Group`] when there is no such group; a counter that it lacks is zero.
pub fn of(leaf: &Path) -> Result<Metrics, CgroupError> {
    let path = Path::new(ROOT).join(leaf);
    let cpu = fs::read_to_string(path.join("cpu.stat")).map_err(|source| CgroupError::Group {
        action: "read the counters of",
        path: path.clone(),
        source,
    })?;
    let read = |name: &str| fs::read_to_string(path.join(name)).unwrap_or_default();
    let (memory, events) = (read("memory.stat"), read("memory.events"));
    Ok(Metrics {
        pids: Some(PidsStat {
            current: number(&read("pids.current")),
            // 0 means no limit here.
            limit: read("pids.max").trim().parse().unwrap_or(0),
        }),
        cpu: Some(CpuStat {
            usage_usec: value_of(&cpu, "usage_usec"),
            user_usec: value_of(&cpu, "user_usec"),
            system_usec: value_of(&cpu, "system_usec"),
            ..CpuStat::default()
        }),
        memory: Some(MemoryStat {
            usage: number(&read("memory.current")),
            usage_limit: number(&read("memory.max")),
            anon: value_of(&memory, "anon"),
            file: value_of(&memory, "file"),
            inactive_file: value_of(&memory, "inactive_file"),
            active_file: value_of(&memory, "active_file"),
            pgfault: value_of(&memory, "pgfault"),
            pgmajfault: value_of(&memory, "pgmajfault"),
            ..MemoryStat::default()
        }),
        memory_events: Some(MemoryEvents {
            oom: value_of(&events, "oom"),
            oom_kill: value_of(&events, "oom_kill"),
            ..MemoryEvents::default()
        }),
        ..Metrics::default()
    })
}

/// The value of `key` in a flat keyed file; 0 when absent.
fn value_of(text: &str, key: &str) -> u64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    line.map_or(0, number)
}

/// A number, or `max` as the greatest one; 0 when neither.
fn number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        digits => digits.parse().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_whole_names() {
        let text = "inactive_file 7\nfile 5\nanon max\n";
        assert_eq!(value_of(text, "file"), 5);
        assert_eq!(value_of(text, "inactive_file"), 7);
        assert_eq!(value_of(text, "anon"), u64::MAX);
        assert_eq!(value_of(text, "absent"), 0);
    }

    #[test]
    fn a_group_that_is_not_there_is_an_error() {
        assert!(of(Path::new("no-such-group/leaf")).is_err());
    }
}
