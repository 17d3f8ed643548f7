//! What a case that never ends is ended by: the suite says where everything stands and fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// The exit code of a suite that was ended.
const FAILED: i32 = 101;
/// So long it may take to say where everything stands.
const SHOW_LIMIT: Duration = Duration::from_secs(60);
/// Sleeping threads of these programs are shown; of all others only those that the kernel holds.
const PROGRAMS: [&str; 3] = ["containerd-shim", "podvisor", "node-suite"];

/// Watches a case until it is dropped.
pub struct Watch {
    _ended: Sender<()>,
}

impl Watch {
    /// Gives the case `name` this long.
    pub fn start(name: &str, limit: Duration) -> Self {
        let (ended, end) = mpsc::channel();
        let name = name.to_owned();
        thread::spawn(move || {
            if end.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("\n{name} has not ended in {limit:?}; the node's threads:");
                // What hangs may hold up who looks at it as well.
                let shown = thread::spawn(show_threads);
                let latest = Instant::now() + SHOW_LIMIT;
                while !shown.is_finished() && Instant::now() < latest {
                    thread::sleep(Duration::from_millis(100));
                }
                exit(FAILED);
            }
        });
        Self { _ended: ended }
    }
}

/// What every thread waits for, and the kernel's log.
fn show_threads() {
    for process in entries("/proc") {
        for thread in entries(process.join("task")) {
            if let Some(line) = thread_line(&thread) {
                eprintln!("{line}");
            }
        }
    }
    match Command::new("dmesg").output() {
        Ok(log) => eprintln!("{}", String::from_utf8_lossy(&log.stdout)),
        Err(error) => eprintln!("no kernel log: {error}"),
    }
}

fn entries(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn thread_line(thread: &Path) -> Option<String> {
    let read = |file: &str| fs::read_to_string(thread.join(file)).unwrap_or_default();
    let name = read("comm");
    let stat = read("stat");
    let state = stat.rsplit_once(") ")?.1.chars().next()?;
    let is_ours = PROGRAMS
        .iter()
        .any(|program| read("cmdline").contains(program));
    if state == 'S' && !is_ours {
        return None;
    }
    let stack = read("stack").replace('\n', " <");
    let (id, name) = (thread.file_name()?.display(), name.trim_end());
    Some(format!("{id} {name} {state} {} {stack}", read("wchan")))
}
