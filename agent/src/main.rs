//! PID 1 of a container pod's guest: it prepares the guest, serves the agent's
//! API to the shim over vsock and runs the pod's containers.
//!
//! One static program, two lives: as PID 1 (`boot`, then `serve`), and as a
//! *stage* (`stage`), which is what it re-executes itself as, single-threaded,
//! to become a container's process.

mod apparmor;
mod boot;
mod cgroup;
mod clock;
mod container;
mod disks;
mod events;
mod forward;
mod huge_pages;
mod log;
mod memory_volumes;
mod network;
mod oci;
mod reaper;
mod sandbox;
mod serve;
mod service;
mod stage;
mod streams;
mod sys;
mod sysctl;
mod volumes;

use std::error::Error;
use std::ffi::CString;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStringExt as _;
use std::process::ExitCode;

use rustix::process::getpid;

fn main() -> ExitCode {
    let started_ns = clock::monotonic_ns();
    let stage = std::env::args_os()
        .nth(1)
        .and_then(|name| CString::new(name.into_vec()).ok());
    // Only PID 1 of the guest boots; PID 1 of a container is a stage.
    if let Some(code) = stage.and_then(|name| stage::run(&name)) {
        return code;
    }
    if !getpid().is_init() {
        return ExitCode::from(2);
    }
    let served = boot::prepare()
        .map_err(|error| error_chain(&error))
        .and_then(|()| {
            log::install();
            serve::run(started_ns).map_err(|error| error_chain(&error))
        });
    // PID 1 ends here: the kernel panics, and the host learns of it at once.
    if let Err(message) = served {
        log::last_words(&message);
    }
    ExitCode::FAILURE
}

/// An error and everything that caused it, on one line.
fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a String does not fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
