//! Filters of system calls as programs that the kernel runs (linux/filter.h, linux/seccomp.h).
//!
//! The kernel tries a new filter on every system call number there is, to learn which it always
//! allows. A search tree over the allowed ranges makes that, and with it the start of a thread,
//! several times cheaper than one comparison a number.

use std::io;

use libc::{sock_filter, sock_fprog};
use thiserror::Error;

use crate::arch::AUDIT_ARCH;

// Offsets in `struct seccomp_data`.
const DATA_NR: u32 = 0;
const DATA_ARCH: u32 = 4;
/// The low half of the second argument, which is an ioctl's request.
const DATA_REQUEST: u32 = 24;

const LOAD: u16 = bits(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS);
const JUMP_EQUAL: u16 = bits(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
const JUMP_AT_LEAST: u16 = bits(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K);
const RETURN: u16 = bits(libc::BPF_RET | libc::BPF_K);

#[expect(
    clippy::cast_possible_truncation,
    reason = "operation codes have 16 bits, and are constants"
)]
const fn bits(code: u32) -> u16 {
    assert!(code <= u16::MAX as u32);
    code as u16
}

const ALLOW: sock_filter = instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
/// A call outside of the list is an attack or a defect; either way the pod ends, and what it
/// leaves behind is cleaned up as after any other death of this process.
const KILL: sock_filter = instruction(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS);

const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Why a filter could not be made or installed.
#[derive(Debug, Error)]
pub enum FilterError {
    /// A list has a number that no system call has, or is longer than a program can be.
    #[error("a filter of {0} system calls cannot be built")]
    Build(usize),
    /// The kernel refuses it.
    #[error("the kernel refuses a filter")]
    Install(#[source] io::Error),
}

/// A program that lets some system calls through and ends the process at all others.
pub struct Filter(Vec<sock_filter>);

impl Filter {
    /// Allows `calls`, and ioctl(2) with one of `requests`.
    ///
    /// # Errors
    /// [`FilterError::Build`] when the lists cannot be a program.
    pub fn new(calls: &[i64], requests: &[u32]) -> Result<Self, FilterError> {
        Self::build(calls, requests).ok_or(FilterError::Build(calls.len()))
    }

    fn build(calls: &[i64], requests: &[u32]) -> Option<Self> {
        let by_request = request_checks(requests)?;
        let ioctl = u32::try_from(libc::SYS_ioctl).ok()?;
        let mut program = vec![
            instruction(LOAD, 0, 0, DATA_ARCH),
            instruction(JUMP_EQUAL, 1, 0, AUDIT_ARCH),
            KILL,
            instruction(LOAD, 0, 0, DATA_NR),
            instruction(JUMP_EQUAL, 0, u8::try_from(by_request.len()).ok()?, ioctl),
        ];
        program.extend(by_request);
        program.extend(search(&boundaries(calls)?, false)?);
        Some(Self(program))
    }

    /// Installs the filter for the calling thread and those it will spawn, for good.
    ///
    /// # Errors
    /// [`FilterError::Install`] with what the kernel said.
    pub fn install(&self) -> Result<(), FilterError> {
        let failed = || FilterError::Install(io::Error::last_os_error());
        // SAFETY: The call takes numbers only and acts on the calling thread.
        if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
            return Err(failed());
        }
        let len = u16::try_from(self.0.len()).map_err(|_| FilterError::Build(self.0.len()))?;
        let program = sock_fprog {
            len,
            filter: self.0.as_ptr().cast_mut(),
        };
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        // SAFETY: The program outlives the call and is as long as it says; the kernel copies it.
        let result = unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program) };
        if result == 0 { Ok(()) } else { Err(failed()) }
    }
}

/// Decides by an ioctl's request.
fn request_checks(requests: &[u32]) -> Option<Vec<sock_filter>> {
    let mut checks = vec![instruction(LOAD, 0, 0, DATA_REQUEST)];
    for (index, &request) in requests.iter().enumerate() {
        // Over the remaining checks and the kill behind them.
        let to_allow = u8::try_from(requests.len() - index).ok()?;
        checks.push(instruction(JUMP_EQUAL, to_allow, 0, request));
    }
    checks.extend([KILL, ALLOW]);
    Some(checks)
}

/// The numbers at which the answer changes, in order: the first of a run of allowed ones, then
/// the first behind it, and so on.
fn boundaries(calls: &[i64]) -> Option<Vec<u32>> {
    let numbers = calls.iter().map(|&call| u32::try_from(call));
    let mut numbers = numbers.collect::<Result<Vec<_>, _>>().ok()?;
    numbers.sort_unstable();
    numbers.dedup();
    let mut boundaries = Vec::new();
    for number in numbers {
        if boundaries.last() == Some(&number) {
            boundaries.pop();
        } else {
            boundaries.push(number);
        }
        boundaries.push(number.checked_add(1)?);
    }
    Some(boundaries)
}

/// A binary search for the loaded number's place among `boundaries`. `allowed` is the answer for
/// numbers below the first.
fn search(boundaries: &[u32], allowed: bool) -> Option<Vec<sock_filter>> {
    let middle = boundaries.len() / 2;
    let Some(&boundary) = boundaries.get(middle) else {
        return Some(vec![if allowed { ALLOW } else { KILL }]);
    };
    let below = search(boundaries.get(..middle)?, allowed)?;
    let allowed_from = allowed ^ middle.is_multiple_of(2);
    let from = search(boundaries.get(middle + 1..)?, allowed_from)?;
    let over = u8::try_from(below.len()).ok()?;
    let mut program = vec![instruction(JUMP_AT_LEAST, over, 0, boundary)];
    program.extend(below);
    program.extend(from);
    Some(program)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs the program as the kernel does and tells whether the call is allowed.
    fn allows(filter: &Filter, arch: u32, nr: u32, request: u32) -> bool {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let step = filter.0[at];
            at += 1;
            let mut jump = |taken: bool| at += usize::from(if taken { step.jt } else { step.jf });
            match (step.code, step.k) {
                (LOAD, DATA_NR) => loaded = nr,
                (LOAD, DATA_ARCH) => loaded = arch,
                (LOAD, DATA_REQUEST) => loaded = request,
                (JUMP_EQUAL, k) => jump(loaded == k),
                (JUMP_AT_LEAST, k) => jump(loaded >= k),
                (RETURN, verdict) => return verdict == libc::SECCOMP_RET_ALLOW,
                other => panic!("unknown instruction {other:?}"),
            }
        }
    }

    const IOCTL: u32 = 16;

    proptest! {
        #[test]
        fn exactly_the_listed_calls_are_allowed(
            calls in proptest::collection::vec(0_i64..400, 0..120),
            requests in proptest::collection::vec(0_u32..16, 0..6),
        ) {
            let calls: Vec<i64> = calls.into_iter().filter(|&nr| nr != libc::SYS_ioctl).collect();
            let filter = Filter::new(&calls, &requests).unwrap();
            for nr in (0..410).chain([0x4000_0000, 0x4000_0001, u32::MAX]) {
                if nr != IOCTL {
                    let listed = calls.contains(&i64::from(nr));
                    prop_assert_eq!(allows(&filter, AUDIT_ARCH, nr, 0), listed, "{}", nr);
                }
                prop_assert!(!allows(&filter, AUDIT_ARCH ^ 1, nr, 0));
            }
            for request in (0..20).chain([u32::MAX]) {
                let listed = requests.contains(&request);
                prop_assert_eq!(allows(&filter, AUDIT_ARCH, IOCTL, request), listed);
            }
        }
    }

    #[test]
    fn a_number_that_no_call_has_is_refused() {
        for wrong in [-1, i64::MAX] {
            assert!(matches!(
                Filter::new(&[0, wrong], &[]),
                Err(FilterError::Build(2))
            ));
        }
    }
}
