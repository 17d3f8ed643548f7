//! Watching memory.events of every container: the kernel notifies inotify when
//! one of its counters changes (Documentation/admin-guide/cgroup-v2.rst).

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use tokio::io::Interest;

use super::Containers;
use crate::cgroup::Cgroup;
use crate::sys::poll::{self, PolledFd};

/// Room for a few dozen events; what they say is looked up anew.
const BUFFER: usize = 1024;

/// One inotify descriptor for all containers. A watch goes with its cgroup.
#[derive(Debug)]
pub struct OomWatch {
    inotify: PolledFd,
}

impl OomWatch {
    /// An empty watch. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// What inotify_init1(2) said.
    pub fn new() -> io::Result<Self> {
        let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self {
            inotify: poll::register(inotify, Interest::READABLE)?,
        })
    }

    /// Watches one more container.
    pub fn add(&self, cgroup: &Cgroup) {
        let file = cgroup.file("memory.events");
        let added = add_watch(self.inotify.get_ref(), &file, WatchFlags::MODIFY);
        if let Err(errno) = added {
            // The count is still read when its processes end.
            tracing::warn!(file = %file.display(), %errno, "memory.events cannot be watched");
        }
    }

    async fn changed(&self) -> io::Result<()> {
        let mut buffer = [0_u8; BUFFER];
        loop {
            let mut guard = self.inotify.readable().await?;
            let read = |fd: &PolledFd| Ok(rustix::io::read(fd.get_ref().as_fd(), &mut buffer)?);
            if let Ok(result) = guard.try_io(read) {
                return result.map(drop);
            }
        }
    }
}

/// Tells of shortages of memory, for ever.
pub async fn watch(containers: Arc<Containers>) {
    while containers.oom.changed().await.is_ok() {
        containers.check_memory();
    }
}
