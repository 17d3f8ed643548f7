//! The pid namespace shared by the pod's containers that have none of their
//! own. It is made with the first of them, and never is the agent's: no container
//! sees PID 1 of the guest.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::Containers;
use crate::stage::POD_INIT;
use crate::sys::clone::{INIT_SELF, Spawn, spawn};

/// The namespace, by its init.
#[derive(Debug)]
pub struct PodPid {
    pidfd: Arc<OwnedFd>,
}

impl Containers {
    /// A process of the shared namespace, made on first use.
    pub(super) fn pod_pid(&self) -> io::Result<Arc<OwnedFd>> {
        let mut table = self.table();
        if let Some(users) = &table.pod_users {
            return Ok(users.init().clone());
        }
        if let Some(pod_pid) = &table.pod_pid {
            return Ok(pod_pid.pidfd.clone());
        }
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let null = rustix::fs::open("/dev/null", flags, Mode::empty())?;
        let null = std::os::fd::AsFd::as_fd(&null);
        let spawned = spawn(&Spawn {
            program: INIT_SELF,
            stage: POD_INIT,
            descriptors: &[null, null, null],
            cgroup: None,
            flags: u64::from(libc::CLONE_NEWPID.unsigned_abs()),
            user_namespace_of: None,
        })?;
        let pidfd = Arc::new(spawned.pidfd);
        table.pod_pid = Some(PodPid {
            pidfd: pidfd.clone(),
        });
        Ok(pidfd)
    }
}
