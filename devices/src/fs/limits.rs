//! How much of the host a guest can hold through its files, and where the bounds come from.

use std::io;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files a guest's kernel may know at once. It drops them under memory pressure of its own and
/// has no word for the host's, so past this bound it is told that there are too many. An inode
/// costs the host about 200 bytes of its own memory.
pub(super) const INODES_MAX: usize = 1 << 20;

/// Files and directories a guest may have open at once, should the host's limit allow it.
const OPEN_FILES_MAX: u64 = 1 << 16;

/// Known files that are kept open (`O_PATH`) before further ones are kept as file handles: an
/// open one saves two system calls for each use, but pins 1 to 2 KiB of kernel memory.
const HELD_EARLY_MAX: u64 = 1 << 13;

/// How many files may be held open for a guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenFileBudget {
    /// Known files held open before file handles are used.
    pub held_early: usize,
    /// Known files held open in all: those of file systems without file handles.
    pub held: usize,
    /// Files and directories open in the guest, each.
    pub opened: usize,
}

impl OpenFileBudget {
    /// The shares of a process that may have `limit` open files; the last eighth is for the rest
    /// of the process.
    pub fn of(limit: u64) -> Self {
        let share =
            |wanted: u64, most: u64| usize::try_from(wanted.min(most)).unwrap_or(usize::MAX);
        Self {
            held_early: share(HELD_EARLY_MAX, limit / 4),
            held: share(INODES_MAX as u64, limit / 2),
            opened: share(OPEN_FILES_MAX, limit / 8),
        }
    }

    /// The shares of this process.
    pub fn of_process() -> Self {
        // No limit at all is what None means; the kernel's own (fs.nr_open) is 2^20 by default.
        Self::of(getrlimit(Resource::Nofile).current.unwrap_or(1 << 20))
    }
}

/// Descriptors for which the process's table has room from the start.
const RESERVED: u64 = 2 * HELD_EARLY_MAX;

/// Raises the number of files this process may have open as far as it may, for it and for what it
/// starts, and returns it. File systems without file handles (an overlay, as container roots are)
/// cost a descriptor for each file the guest knows.
///
/// To be called while the process has one thread: its descriptor table gets its size then. Later
/// each doubling would wait for all CPUs (an RCU grace period, up to 20 ms) in the middle of a
/// pod's start.
///
/// # Errors
/// Those of setrlimit(2), open(2) and fcntl(2).
pub fn raise_open_files_limit() -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: limit.maximum,
                maximum: limit.maximum,
            },
        )?;
    }
    let limit = limit.maximum.unwrap_or(u64::MAX);
    let last = i32::try_from(limit.min(RESERVED)).unwrap_or(i32::MAX) - 1;
    let any = openat(CWD, c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    drop(fcntl_dupfd_cloexec(any, last)?);
    Ok(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_leave_room_for_the_process() {
        for limit in [64, 1024, 65_536, 1 << 20, u64::MAX] {
            let budget = OpenFileBudget::of(limit);
            let all = (budget.held + 2 * budget.opened) as u64;
            assert!(all <= limit - limit / 8, "{budget:?} of {limit}");
            assert!(budget.held_early <= budget.held);
        }
    }

    #[test]
    fn the_limit_is_raised_to_the_hard_one_and_the_table_has_room() {
        let limit = raise_open_files_limit().unwrap();
        assert_eq!(
            getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
            limit
        );
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let room = status
            .lines()
            .find_map(|line| line.strip_prefix("FDSize:"))
            .unwrap();
        assert!(room.trim().parse::<u64>().unwrap() >= limit.min(RESERVED));
    }
}
