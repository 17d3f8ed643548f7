//! What a cgroup uses, as containerd's `io.containerd.cgroups.v2.Metrics`.

use std::fs;

use podvisor_proto::cgroups::{
    CpuStat, HugeTlbStat, IoEntry, IoStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};

use super::Cgroup;

/// Most block devices reported; a guest has a handful.
const MAX_DEVICES: usize = 64;

impl Cgroup {
    /// Reads every counter; a file that the kernel does not have counts as zeros.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let read = |name: &str| fs::read_to_string(self.file(name)).unwrap_or_default();
        let io = parse_io(&read("io.stat"));
        Metrics {
            pids: Some(PidsStat {
                current: number(&read("pids.current")),
                // 0 means no limit here.
                limit: read("pids.max").trim().parse().unwrap_or(0),
            }),
            cpu: Some(parse_cpu(&read("cpu.stat"))),
            memory: Some(self.memory(&read)),
            io: Some(IoStat { usage: io }),
            hugetlb: self.huge_pages(&read),
            memory_events: Some(parse_memory_events(&read("memory.events"))),
            ..Metrics::default()
        }
    }

    fn memory(&self, read: &impl Fn(&str) -> String) -> MemoryStat {
        MemoryStat {
            usage: number(&read("memory.current")),
            usage_limit: number(&read("memory.max")),
            swap_usage: number(&read("memory.swap.current")),
            swap_limit: number(&read("memory.swap.max")),
            max_usage: number(&read("memory.peak")),
            swap_max_usage: number(&read("memory.swap.peak")),
            ..parse_memory(&read("memory.stat"))
        }
    }

    fn huge_pages(&self, read: &impl Fn(&str) -> String) -> Vec<HugeTlbStat> {
        let sizes = ["2MB", "1GB"].into_iter();
        let present = sizes.filter(|size| self.file(&format!("hugetlb.{size}.current")).exists());
        present
            .map(|size| HugeTlbStat {
                current: number(&read(&format!("hugetlb.{size}.current"))),
                max: number(&read(&format!("hugetlb.{size}.max"))),
                pagesize: size.to_owned(),
            })
            .collect()
    }
}

/// The value of `key` in a flat keyed file; 0 when absent.
#[must_use]
pub fn value_of(text: &str, key: &str) -> u64 {
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

fn parse_cpu(text: &str) -> CpuStat {
    CpuStat {
        usage_usec: value_of(text, "usage_usec"),
        user_usec: value_of(text, "user_usec"),
        system_usec: value_of(text, "system_usec"),
        nr_periods: value_of(text, "nr_periods"),
        nr_throttled: value_of(text, "nr_throttled"),
        throttled_usec: value_of(text, "throttled_usec"),
    }
}

fn parse_memory_events(text: &str) -> MemoryEvents {
    MemoryEvents {
        low: value_of(text, "low"),
        high: value_of(text, "high"),
        max: value_of(text, "max"),
        oom: value_of(text, "oom"),
        oom_kill: value_of(text, "oom_kill"),
    }
}

fn parse_memory(text: &str) -> MemoryStat {
    let mut stat = MemoryStat::default();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(' ') else {
            continue;
        };
        let field = match key {
            "anon" => &mut stat.anon,
            "file" => &mut stat.file,
            "kernel_stack" => &mut stat.kernel_stack,
            "slab" => &mut stat.slab,
            "sock" => &mut stat.sock,
            "shmem" => &mut stat.shmem,
            "file_mapped" => &mut stat.file_mapped,
            "file_dirty" => &mut stat.file_dirty,
            "file_writeback" => &mut stat.file_writeback,
            "anon_thp" => &mut stat.anon_thp,
            "inactive_anon" => &mut stat.inactive_anon,
            "active_anon" => &mut stat.active_anon,
            "inactive_file" => &mut stat.inactive_file,
            "active_file" => &mut stat.active_file,
            "unevictable" => &mut stat.unevictable,
            "slab_reclaimable" => &mut stat.slab_reclaimable,
            "slab_unreclaimable" => &mut stat.slab_unreclaimable,
            "pgfault" => &mut stat.pgfault,
            "pgmajfault" => &mut stat.pgmajfault,
            // The kernel split these by kind in 5.9; containerd has one field.
            "workingset_refault_anon" | "workingset_refault_file" => &mut stat.workingset_refault,
            "workingset_activate_anon" | "workingset_activate_file" => {
                &mut stat.workingset_activate
            }
            "workingset_nodereclaim" => &mut stat.workingset_nodereclaim,
            "pgrefill" => &mut stat.pgrefill,
            "pgscan" => &mut stat.pgscan,
            "pgsteal" => &mut stat.pgsteal,
            "pgactivate" => &mut stat.pgactivate,
            "pgdeactivate" => &mut stat.pgdeactivate,
            "pglazyfree" => &mut stat.pglazyfree,
            "pglazyfreed" => &mut stat.pglazyfreed,
            "thp_fault_alloc" => &mut stat.thp_fault_alloc,
            "thp_collapse_alloc" => &mut stat.thp_collapse_alloc,
            _ => continue,
        };
        *field = field.saturating_add(number(value));
    }
    stat
}

/// Parses io.stat: `MAJ:MIN rbytes=… wbytes=… rios=… wios=… …`.
fn parse_io(text: &str) -> Vec<IoEntry> {
    text.lines()
        .filter_map(parse_io_line)
        .take(MAX_DEVICES)
        .collect()
}

fn parse_io_line(line: &str) -> Option<IoEntry> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut entry = IoEntry {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        ..IoEntry::default()
    };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        match key {
            "rbytes" => entry.rbytes = number(value),
            "wbytes" => entry.wbytes = number(value),
            "rios" => entry.rios = number(value),
            "wios" => entry.wios = number(value),
            _ => {}
        }
    }
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_matched_whole() {
        let events = "low 0\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(value_of(events, "oom"), 3);
        assert_eq!(value_of(events, "oom_kill"), 2);
        assert_eq!(value_of(events, "absent"), 0);
    }

    #[test]
    fn split_counters_are_added_up() {
        let stat = parse_memory(
            "anon 4096\nworkingset_refault_anon 2\nworkingset_refault_file 3\nnew 1\n",
        );
        assert_eq!(stat.anon, 4096);
        assert_eq!(stat.workingset_refault, 5);
    }

    #[test]
    fn io_lines_parse_and_broken_ones_are_skipped() {
        let entries =
            parse_io("254:0 rbytes=512 wbytes=1024 rios=1 wios=2 dbytes=0 dios=0\nbroken\n");
        assert_eq!(entries.len(), 1);
        assert_eq!(
            (entries[0].major, entries[0].rbytes, entries[0].wios),
            (254, 512, 2)
        );
    }

    #[test]
    fn no_limit_is_the_greatest_number() {
        assert_eq!(number("max\n"), u64::MAX);
        assert_eq!(number("12\n"), 12);
    }
}
