//! Processors and memory that are plugged in while the guest runs. The kernel finds them by itself and takes
//! memory into use; a processor waits until somebody switches it on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use podvisor_proto::ttrpc::Status;
use tokio::time::{Instant, sleep};

use crate::error_chain;

/// The kernel's processors (Documentation/ABI/testing/sysfs-devices-system-cpu).
const CPUS: &str = "/sys/devices/system/cpu";
/// The kernel's memory zones.
const ZONES: &str = "/proc/zoneinfo";
const PAGE_LEN: u64 = 4096;
/// What a kernel leaves alone of the memory it began with: the hole below 1 MiB.
const HOLE_LEN: u64 = 1 << 20;
/// How long plugged hardware may take to be found.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(5);

/// Why plugged hardware is not in use.
#[derive(Debug, thiserror::Error)]
pub enum HardwareError {
    /// A file of the kernel could not be read or written.
    #[error("{path}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It has not been found in time.
    #[error(
        "the guest uses {processors} of {wanted_processors} processors and {} of {} MiB of memory after {} s",
        memory_bytes >> 20, wanted_memory_bytes >> 20, PATIENCE.as_secs()
    )]
    Late {
        /// Processors in use.
        processors: usize,
        /// And those that there are to be.
        wanted_processors: usize,
        /// Memory in use.
        memory_bytes: u64,
        /// And what there is to be.
        wanted_memory_bytes: u64,
    },
}

impl From<HardwareError> for Status {
    fn from(error: HardwareError) -> Self {
        let message = error_chain(&error);
        match error {
            HardwareError::File { .. } => Self::internal(message),
            HardwareError::Late { .. } => Self::deadline_exceeded(message),
        }
    }
}

/// Waits until there are as many processors in use, which it switches on, and as much memory.
///
/// # Errors
///
/// [`HardwareError`].
pub async fn take_into_use(processors: u32, memory_bytes: u64) -> Result<(), HardwareError> {
    let wanted_processors = usize::try_from(processors).unwrap_or(usize::MAX);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let processors = switch_on(Path::new(CPUS), wanted_processors)?;
        let memory = memory_in_use()?;
        if processors >= wanted_processors && memory + HOLE_LEN >= memory_bytes {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(HardwareError::Late {
                processors,
                wanted_processors,
                memory_bytes: memory,
                wanted_memory_bytes: memory_bytes,
            });
        }
        sleep(PAUSE).await;
    }
}

/// Switches processors on until `wanted` are, as far as there are some; yields how many are on.
fn switch_on(cpus: &Path, wanted: usize) -> Result<usize, HardwareError> {
    let path = cpus.join("online");
    let mut on = count(&fs::read_to_string(&path).map_err(failed(&path))?);
    if on >= wanted {
        return Ok(on);
    }
    for entry in fs::read_dir(cpus).map_err(failed(cpus))? {
        let switch = entry.map_err(failed(cpus))?.path().join("online");
        let is_off = fs::read_to_string(&switch).is_ok_and(|state| state.trim() == "0");
        if is_off && on < wanted {
            fs::write(&switch, "1").map_err(failed(&switch))?;
            on += 1;
        }
    }
    Ok(on)
}

/// How many a list of the kernel's such as `0-2,5` names.
fn count(list: &str) -> usize {
    let of_part = |part: &str| -> Option<usize> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some((last + 1).saturating_sub(first))
    };
    list.trim().split(',').filter_map(of_part).sum()
}

fn memory_in_use() -> Result<u64, HardwareError> {
    let path = Path::new(ZONES);
    let text = fs::read_to_string(path).map_err(failed(path))?;
    Ok(present_bytes(&text))
}

/// What all zones have together. A balloon changes nothing of it.
fn present_bytes(zones: &str) -> u64 {
    let pages = zones.lines().filter_map(|line| {
        let count = line.trim_start().strip_prefix("present ")?;
        count.trim().parse::<u64>().ok()
    });
    pages.sum::<u64>() * PAGE_LEN
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> HardwareError {
    let path = path.to_owned();
    move |source| HardwareError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_counted() {
        for (list, expected) in [("0", 1), ("0-2,5\n", 4), ("", 0), ("3-1", 0)] {
            assert_eq!(count(list), expected, "{list:?}");
        }
    }

    #[test]
    fn present_memory_is_that_of_all_zones() {
        let text = "Node 0, zone      DMA\n        spanned  4095\n        present  3998\n        managed  3840\n\
                    Node 0, zone  Movable\n        present  32768\n";
        assert_eq!(present_bytes(text), (3998 + 32768) * PAGE_LEN);
    }

    #[test]
    fn no_more_processors_are_switched_on_than_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let switch = |number: u32| folder.path().join(format!("cpu{number}/online"));
        fs::write(folder.path().join("online"), "0\n").unwrap();
        fs::create_dir(folder.path().join("cpu0")).unwrap();
        for number in 1..4 {
            fs::create_dir(folder.path().join(format!("cpu{number}"))).unwrap();
            fs::write(switch(number), "0\n").unwrap();
        }
        assert_eq!(switch_on(folder.path(), 3).unwrap(), 3);
        let is_on = |number: &u32| fs::read_to_string(switch(*number)).unwrap() == "1";
        assert_eq!((1..4).filter(is_on).count(), 2);
        assert_eq!(switch_on(folder.path(), 9).unwrap(), 2, "what there is");
    }
}
