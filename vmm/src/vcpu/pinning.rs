//! Which of the host's processors a machine's processor runs on.

use std::io;

use libc::pthread_t;
use thiserror::Error;

/// Why a processor could not be bound to one of the host's.
#[derive(Debug, Error)]
#[error("cannot run vCPU {vcpu} on CPUs {cpus:?} of the host")]
pub struct PinError {
    /// The processor.
    pub vcpu: usize,
    /// The host's.
    pub cpus: Vec<usize>,
    /// What the host said; `EINVAL` when it has no such CPUs or does not let this process there.
    pub source: io::Error,
}

const WORD_BITS: usize = u64::BITS as usize;
/// Eight times the most processors that Linux is built for (`NR_CPUS`), so that no number makes
/// a large mask.
const MAX_CPUS: usize = 1 << 16;

/// Lets `thread`, which lives, run on these of the host's processors only.
pub(super) fn bind(thread: pthread_t, cpus: &[usize]) -> io::Result<()> {
    let last = cpus.iter().copied().max().filter(|&cpu| cpu < MAX_CPUS);
    let last = last.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    let mut mask = vec![0_u64; last / WORD_BITS + 1];
    for cpu in cpus {
        if let Some(word) = mask.get_mut(cpu / WORD_BITS) {
            *word |= 1 << (cpu % WORD_BITS);
        }
    }
    set_affinity(thread, &mask)
}

/// Lets `thread`, which lives, run wherever this process may.
pub(super) fn release(thread: pthread_t) -> io::Result<()> {
    // The kernel takes away what is not there or not allowed.
    set_affinity(thread, &[u64::MAX; MAX_CPUS / WORD_BITS])
}

fn set_affinity(thread: pthread_t, mask: &[u64]) -> io::Result<()> {
    // SAFETY: The mask is as long as it says; the caller keeps the thread from being joined.
    match unsafe { libc::pthread_setaffinity_np(thread, size_of_val(mask), mask.as_ptr().cast()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `Cpus_allowed_list` of the calling thread.
    fn allowed() -> String {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let mut lines = status.lines();
        let found = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        found.unwrap().trim().to_owned()
    }

    #[test]
    fn a_thread_runs_where_it_is_bound_until_it_is_released() {
        let thread = std::thread::spawn(|| {
            let before = allowed();
            let first = before.split([',', '-']).next().unwrap().to_owned();
            // SAFETY: The call has no preconditions.
            let me = unsafe { libc::pthread_self() };
            bind(me, &[first.parse().unwrap()]).unwrap();
            assert_eq!(allowed(), first);
            release(me).unwrap();
            assert_eq!(allowed(), before);
            // What it may not use is left out, as long as there is something that it may.
            bind(me, &[first.parse().unwrap(), MAX_CPUS - 1]).unwrap();
            assert_eq!(allowed(), first);
            for cpus in [&[MAX_CPUS - 1][..], &[MAX_CPUS], &[usize::MAX], &[]] {
                let refused = bind(me, cpus).unwrap_err();
                assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "{cpus:?}");
            }
        });
        thread.join().unwrap();
    }
}
