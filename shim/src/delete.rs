//! `delete`: removes what a pod's server has left on the host, from what is on disk. containerd
//! runs it whenever a server's connection ends, clean ends included, and may run it twice.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podvisor_proto::containerd::task::DeleteResponse;
use podvisor_proto::containerd::timestamp;
use prost::Message;
use thiserror::Error;

use crate::host::record::Record;
use crate::host::{HostOps, LocalHost, NetworkRequest, cgroup, unmount_all};
use crate::sandbox::chain;

/// What the shell says of a process killed by SIGKILL.
const KILLED_STATUS: u32 = 137;
/// A server that is ending is given this time; containerd gives `delete` 5 s.
const SERVER_END: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(10);

/// Why the answer did not reach containerd.
#[derive(Debug, Error)]
pub enum DeleteError {
    /// No bundle is named, and there is no working directory.
    #[error("cannot find the bundle")]
    Bundle(#[source] io::Error),
    /// containerd does not take the answer.
    #[error("cannot answer to containerd")]
    Answer(#[source] io::Error),
}

/// Cleans up after the task with this bundle and answers to containerd.
///
/// # Errors
/// [`DeleteError`]. What cannot be cleaned is told on stderr, for containerd's log.
pub fn delete(bundle: Option<&Path>) -> Result<(), DeleteError> {
    let bundle = match bundle {
        Some(bundle) => bundle.to_owned(),
        None => std::env::current_dir().map_err(DeleteError::Bundle)?,
    };
    for problem in clean(&bundle) {
        eprintln!("podvisor: {problem}");
    }
    let response = DeleteResponse {
        pid: 0,
        exit_status: KILLED_STATUS,
        exited_at: Some(timestamp(SystemTime::now())),
    };
    io::stdout()
        .write_all(&response.encode_to_vec())
        .map_err(DeleteError::Answer)
}

/// Cleans up; yields what could not be cleaned. Only the bundle of a pod has a record: that of a
/// member container leads to nobody else.
fn clean(bundle: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    let mut note = |result: Result<(), Box<dyn std::error::Error>>| {
        problems.extend(result.err().map(|error| chain(&*error)));
    };
    if let Some(record) = Record::load(bundle) {
        end_server(&record);
        if let Some(namespace) = record.network {
            note(
                LocalHost
                    .release_network(&NetworkRequest { namespace })
                    .map_err(Into::into),
            );
        }
        note(cgroup::remove(&record.cgroups).map_err(Into::into));
        note(
            record
                .socket
                .map_or(Ok(()), remove_file)
                .map_err(Into::into),
        );
    }
    note(unmount_all(&bundle.join("rootfs")).map_err(Into::into));
    problems
}

/// Waits for the server to end, and ends it when it does not.
fn end_server(record: &Record) {
    let deadline = Instant::now() + SERVER_END;
    while let Some(pid) = record.living_process() {
        if Instant::now() > deadline {
            let pid = Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX));
            // It may have ended just now.
            let _ = kill(pid, Signal::SIGKILL);
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

fn remove_file(path: PathBuf) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_without_a_record_needs_no_cleaning() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(clean(folder.path()), Vec::<String>::new());
        assert_eq!(clean(&folder.path().join("gone")), Vec::<String>::new());
    }

    #[test]
    fn what_a_dead_server_has_recorded_goes_and_twice_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        std::fs::write(&socket, "").unwrap();
        let record = Record {
            started: 1,
            socket: Some(socket.clone()),
            ..Record::of_this_process()
        };
        record.save(folder.path()).unwrap();
        assert_eq!(clean(folder.path()), Vec::<String>::new());
        assert!(!socket.exists());
        assert_eq!(clean(folder.path()), Vec::<String>::new());
    }
}
