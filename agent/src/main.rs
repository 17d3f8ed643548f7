//! PID 1 of a container pod's guest: it prepares the guest, serves the agent's
//! API to the shim over vsock and runs the pod's containers.
//!
//! One static program, several lives: as PID 1 of such a guest (`boot`, then
//! `serve`); as a *stage* (`stage`), which is what it re-executes itself as,
//! single-threaded, to become a container's process; as PID 1 that finds and
//! starts a machine's own kernel (`boot_stage`); as a service of that machine
//! (`machine`).

mod apparmor;
mod boot;
mod boot_stage;
mod cgroup;
mod clock;
mod container;
mod disks;
mod events;
mod forward;
mod hardware;
mod huge_pages;
mod log;
mod machine;
mod memory_volumes;
mod network;
mod oci;
mod pod_users;
mod reaper;
mod refuse;
mod sandbox;
mod serve;
mod service;
mod stage;
mod streams;
mod sys;
mod sysctl;
mod volumes;

use std::error::Error;
use std::ffi::{CString, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStringExt as _;
use std::process::ExitCode;

use podvisor_proto::machine::AGENT_ARGUMENT;
use rustix::process::getpid;

/// Exit status of a program that was started in a way that it does not know.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let started_ns = clock::monotonic_ns();
    let argument = std::env::args_os().nth(1);
    // Only PID 1 of the guest boots; PID 1 of a container is a stage.
    let stage = argument
        .clone()
        .and_then(|name| CString::new(name.into_vec()).ok());
    if let Some(code) = stage.and_then(|name| stage::run(&name)) {
        return code;
    }
    if !getpid().is_init() {
        return serve_machine(argument, started_ns);
    }
    // What the initial image holds says what this guest is.
    let served = if boot_stage::root_stage::is_one() {
        boot_stage::root_stage::run()
            .map(drop)
            .map_err(|error| error_chain(&error))
    } else if boot_stage::is_one() {
        serve_boot_stage(started_ns)
    } else {
        serve_containers(started_ns)
    };
    // PID 1 ends here: the kernel panics, and the host learns of it at once.
    if let Err(message) = served {
        log::last_words(&message);
    }
    ExitCode::FAILURE
}

fn serve_machine(argument: Option<OsString>, started_ns: u64) -> ExitCode {
    if argument.is_none_or(|name| name != AGENT_ARGUMENT) {
        return ExitCode::from(EXIT_USAGE);
    }
    log::install();
    machine::run(started_ns)
}

fn serve_containers(started_ns: u64) -> Result<(), String> {
    boot::prepare().map_err(|error| error_chain(&error))?;
    log::install();
    serve::run(started_ns).map_err(|error| error_chain(&error))
}

fn serve_boot_stage(started_ns: u64) -> Result<(), String> {
    let service = boot_stage::prepare().and_then(|()| boot_stage::BootService::new());
    let service = service.map_err(|error| error_chain(&error))?;
    log::install();
    serve::run_boot_stage(started_ns, service).map_err(|error| error_chain(&error))
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
