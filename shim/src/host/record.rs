//! What a pod's server has made on the host, on disk in its bundle: `delete` cleans up from this
//! alone when the server was killed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const FILE: &str = "podvisor.json";
/// Version of the file's form. A newer program reads older forms.
const VERSION: u32 = 1;

/// The record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this form.
    pub version: u32,
    /// The server's process.
    pub pid: u32,
    /// When that process began (field 22 of /proc/PID/stat): tells it from a later one.
    pub started: u64,
    /// cgroups that were made, innermost first.
    pub cgroups: Vec<PathBuf>,
    /// The pod's network namespace, when there is a redirect in it.
    pub network: Option<PathBuf>,
    /// The socket that the server listens on.
    pub socket: Option<PathBuf>,
}

impl Record {
    /// An empty record of this process.
    pub fn of_this_process() -> Self {
        let pid = std::process::id();
        Self {
            version: VERSION,
            pid,
            started: start_time(pid).unwrap_or_default(),
            ..Self::default()
        }
    }

    /// Reads the record in `bundle`; None when there is none, or none that can be understood.
    pub fn load(bundle: &Path) -> Option<Self> {
        let text = fs::read(bundle.join(FILE)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Writes the record into `bundle`, as a whole or not at all.
    ///
    /// # Errors
    /// What the host says.
    pub fn save(&self, bundle: &Path) -> io::Result<()> {
        let temporary = bundle.join(format!(".{FILE}"));
        fs::write(&temporary, serde_json::to_vec(self)?)?;
        fs::rename(&temporary, bundle.join(FILE))
    }

    /// The recorded process, if it still is there.
    pub fn living_process(&self) -> Option<u32> {
        let started = start_time(self.pid)?;
        (started == self.started).then_some(self.pid)
    }
}

/// Keeps the record of this process on disk as it grows.
#[derive(Debug)]
pub struct RecordKeeper {
    record: Record,
    bundle: PathBuf,
}

impl RecordKeeper {
    /// Keeps `record` in `bundle`.
    pub fn new(record: Record, bundle: PathBuf) -> Self {
        Self { record, bundle }
    }

    /// Changes the record. One that cannot be written is told: the pod can live without.
    pub fn note(&mut self, change: impl FnOnce(&mut Record)) {
        change(&mut self.record);
        if let Err(error) = self.record.save(&self.bundle) {
            tracing::warn!(%error, "the pod's record is not written");
        }
    }
}

/// When a process began, in clock ticks since the host's boot (proc_pid_stat(5)).
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses, which may hold blanks and parentheses.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    let started = fields.nth(18)?.parse().ok()?;
    // A zombie holds nothing any more.
    (state != "Z").then_some(started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_writer() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Record::load(folder.path()), None);
        let record = Record {
            network: Some("/n".into()),
            ..Record::of_this_process()
        };
        record.save(folder.path()).unwrap();
        assert_eq!(Record::load(folder.path()), Some(record.clone()));
        assert_eq!(record.living_process(), Some(std::process::id()));
        assert_eq!(
            Record {
                started: 1,
                ..record
            }
            .living_process(),
            None
        );
    }
}
