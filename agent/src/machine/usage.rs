//! What the machine as a whole uses (proc_stat(5), proc_meminfo(5)).

use podvisor_proto::cgroups::{CpuStat, MemoryStat, Metrics, PidsStat};

/// Microseconds of a tick of /proc/stat: USER_HZ is 100 on every Linux.
const TICK_US: u64 = 10_000;

/// The machine's use of processors, memory and processes.
#[must_use]
pub fn metrics() -> Metrics {
    let (memory_total, memory_available) = crate::sandbox::memory_bytes();
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    Metrics {
        cpu: Some(cpu(&stat)),
        memory: Some(MemoryStat {
            usage: memory_total.saturating_sub(memory_available),
            usage_limit: memory_total,
            ..MemoryStat::default()
        }),
        pids: Some(PidsStat {
            current: processes().len() as u64,
            limit: 0,
        }),
        ..Metrics::default()
    }
}

/// Every process of the machine but the kernel's own threads.
#[must_use]
pub fn processes() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut pids: Vec<u32> = pids.filter(|pid| !is_kernel_thread(*pid)).collect();
    pids.sort_unstable();
    pids
}

/// Kernel threads have no memory of their own, and so no size.
fn is_kernel_thread(pid: u32) -> bool {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    statm.split(' ').next().is_none_or(|size| size == "0")
}

fn cpu(stat: &str) -> CpuStat {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "));
    let ticks: Vec<u64> = line
        .unwrap_or_default()
        .split_whitespace()
        .map(|ticks| ticks.parse().unwrap_or_default())
        .collect();
    let of = |at: usize| ticks.get(at).copied().unwrap_or_default() * TICK_US;
    // user and nice; system, irq and softirq.
    let (user_usec, system_usec) = (of(0) + of(1), of(2) + of(5) + of(6));
    CpuStat {
        usage_usec: user_usec + system_usec,
        user_usec,
        system_usec,
        ..CpuStat::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_counted_without_idle() {
        let used = cpu("cpu  10 5 20 1000 50 1 2 0 0 0\ncpu0 1 1 1 1\n");
        assert_eq!((used.user_usec, used.system_usec), (150_000, 230_000));
        assert_eq!(used.usage_usec, 380_000);
    }

    #[test]
    fn this_process_is_among_them() {
        assert!(processes().contains(&std::process::id()));
    }
}
