//! The user namespace of a pod whose users are others outside of it (`hostUsers: false`), and with
//! it the network, the host name and the IPC of the pod, which belong to it: root of the pod may
//! change them, as with any runtime, and is nobody outside of it.
//!
//! A process holds the namespaces: the init of the pid namespace that containers may share. The
//! agent itself goes where the pod's network is, so that all it does there is done for the pod.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;

use podvisor_proto::agent::v1::{IdRange, NetworkConfig, UserMaps};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Pid;
use rustix::thread::ThreadNameSpaceType as Kind;

use crate::network::{self, NetworkError};
use crate::stage::POD_INIT;
use crate::sys::clone::{INIT_SELF, Spawn, spawn};

/// What the pod's init is born with.
const NEW_NAMESPACES: [i32; 5] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
];

/// Why a pod has no users of its own.
#[derive(Debug, thiserror::Error)]
pub enum PodUsersError {
    /// The namespaces could not be made.
    #[error("make the pod's user namespace")]
    Make(#[source] io::Error),
    /// The maps are refused.
    #[error("map the pod's users and groups")]
    Map(#[source] io::Error),
    /// They could not be joined.
    #[error("join the pod's namespaces")]
    Join(#[source] io::Error),
    /// The interfaces stay where they are.
    #[error("move the interfaces")]
    Network(#[from] NetworkError),
}

/// The pod's init, which holds its namespaces for as long as the guest lives.
#[derive(Clone, Debug)]
pub struct PodUsers {
    init: Arc<OwnedFd>,
}

impl PodUsers {
    /// Makes the pod's namespaces, moves the interfaces of `network` there and goes there, too.
    ///
    /// # Errors
    ///
    /// [`PodUsersError`].
    pub fn enter(maps: &UserMaps, network: &NetworkConfig) -> Result<Self, PodUsersError> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let null = rustix::fs::open("/dev/null", flags, Mode::empty());
        let null = null.map_err(|errno| PodUsersError::Make(errno.into()))?;
        let (theirs, ours) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|errno| PodUsersError::Make(errno.into()))?;
        let spawned = spawn(&Spawn {
            program: INIT_SELF,
            stage: POD_INIT,
            descriptors: &[null.as_fd(), null.as_fd(), null.as_fd(), theirs.as_fd()],
            cgroup: None,
            flags: NEW_NAMESPACES
                .iter()
                .fold(0, |flags, flag| flags | u64::from(flag.unsigned_abs())),
            user_namespace_of: None,
        })
        .map_err(PodUsersError::Make)?;
        map_ids(spawned.pid, maps).map_err(PodUsersError::Map)?;
        rustix::io::write(&ours, b"m").map_err(|errno| PodUsersError::Map(errno.into()))?;
        let init = spawned.pidfd;
        network::move_interfaces(network, pod_network(spawned.pid)?.as_raw_fd())?;
        rustix::thread::move_into_thread_name_spaces(
            init.as_fd(),
            Kind::NETWORK | Kind::INTER_PROCESS_COMMUNICATION | Kind::HOST_NAME_AND_NIS_DOMAIN_NAME,
        )
        .map_err(|errno| PodUsersError::Join(errno.into()))?;
        network::bring_loopback_up()?;
        Ok(Self {
            init: Arc::new(init),
        })
    }

    /// The pod's init.
    #[must_use]
    pub fn init(&self) -> &Arc<OwnedFd> {
        &self.init
    }
}

fn pod_network(pid: Pid) -> Result<OwnedFd, PodUsersError> {
    let path = format!("/proc/{}/ns/net", pid.as_raw_nonzero());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| PodUsersError::Join(errno.into()))
}

fn map_ids(pid: Pid, maps: &UserMaps) -> io::Result<()> {
    for (file, ranges) in [("uid_map", &maps.users), ("gid_map", &maps.groups)] {
        let path = format!("/proc/{}/{file}", pid.as_raw_nonzero());
        std::fs::write(path, map_text(ranges))?;
    }
    Ok(())
}

fn map_text(ranges: &[IdRange]) -> String {
    let lines = ranges
        .iter()
        .map(|range| format!("{} {} {}\n", range.inside, range.outside, range.len));
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_written_as_the_kernel_reads_them() {
        let range = |inside, outside, len| IdRange {
            inside,
            outside,
            len,
        };
        let text = map_text(&[range(0, 1000, 65536), range(70000, 1, 1)]);
        assert_eq!(text, "0 1000 65536\n70000 1 1\n");
    }
}
