//! The server's log: lines into the bundle's `log` FIFO, which containerd copies into its own.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use tracing::level_filters::LevelFilter;

/// A FIFO that is written to and never waited for: what a reader does not take is lost.
struct Fifo(File);

impl Write for Fifo {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.0.write(line) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(line.len()),
            other => other,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends this process's log into `bundle`'s FIFO. Without one there is no log.
pub fn to_bundle(bundle: &Path, debug: bool) {
    // For both directions: a restart of containerd, which reads it, then is no end.
    let fifo = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(bundle.join("log"));
    let Ok(fifo) = fifo else {
        return;
    };
    let level = if debug {
        LevelFilter::DEBUG
    } else {
        LevelFilter::INFO
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_writer(Mutex::new(Fifo(fifo)))
        .finish();
    // There is no other: this is the only place that sets one, once a process.
    let _ = tracing::subscriber::set_global_default(subscriber);
}
