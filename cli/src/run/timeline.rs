//! The start of a pod's virtual machine by phase, as its shim wrote it down.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// One phase that has been reached.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Reached {
    pub phase: String,
    /// Microseconds since the shim's exec.
    pub us: u64,
}

/// Reads the timeline of a pod whose runtime listens on `socket`. Runtimes of other kinds write
/// none.
pub fn read(socket: &Path, sandbox: &str) -> Vec<Reached> {
    let file = file(socket, sandbox);
    let json = fs::read(file).unwrap_or_default();
    let mut timeline: Vec<Reached> = serde_json::from_slice(&json).unwrap_or_default();
    // The machine's phases run beside the shim's own.
    timeline.sort_by_key(|reached| reached.us);
    timeline
}

/// The bundle lies in containerd's state folder, as its socket does.
fn file(socket: &Path, sandbox: &str) -> PathBuf {
    let state = socket.parent().unwrap_or(Path::new("/run/containerd"));
    state
        .join("io.containerd.runtime.v2.task/k8s.io")
        .join(sandbox)
        .join("timeline.json")
}

/// One line a phase: what it is, what it took, when it was reached.
pub fn lines(timeline: &[Reached]) -> Vec<String> {
    let mut before = 0;
    timeline
        .iter()
        .map(|Reached { phase, us }| {
            let took = us.saturating_sub(before);
            before = *us;
            let (whole, part) = (took / 1000, took % 1000 / 100);
            let (at, at_part) = (us / 1000, us % 1000 / 100);
            format!("{phase:<31} {whole:>9}.{part} ms  at {at:>6}.{at_part} ms")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_tells_what_its_phase_took() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder
            .path()
            .join("io.containerd.runtime.v2.task/k8s.io/abc");
        fs::create_dir_all(&bundle).unwrap();
        let json = r#"[{"phase": "kernel", "us": 9250}, {"phase": "kvm", "us": 1200}]"#;
        fs::write(bundle.join("timeline.json"), json).unwrap();
        let timeline = read(&folder.path().join("containerd.sock"), "abc");
        let lines = lines(&timeline);
        assert!(lines[0].contains("1.2 ms  at      1.2 ms"), "{}", lines[0]);
        assert!(
            lines[1].starts_with("kernel ") && lines[1].contains("8.0 ms"),
            "{}",
            lines[1]
        );
    }

    #[test]
    fn no_file_is_no_timeline() {
        assert_eq!(read(Path::new("/nowhere/containerd.sock"), "abc"), []);
    }
}
