//! What pods occupy on a machine, counted: what is there before a pod and after it must be equal.

mod files;
mod links;
mod processes;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// containerd's state: bundles, sockets, FIFOs.
const CONTAINERD_STATE: &str = "/run/containerd";
const CGROUPS: &str = "/sys/fs/cgroup";

/// Why the count failed.
#[derive(Debug, Error)]
pub enum LeftoversError {
    /// A file or folder cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A network namespace cannot be looked into.
    #[error("cannot look into the network namespace {}", path.display())]
    Netns {
        /// The namespace's file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl LeftoversError {
    fn read(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Read { path, source }
    }
}

/// How many of each kind there are. Of processes and control groups only those of pods count, so
/// that a busy machine's others do not disturb the comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Shims, and processes in control groups of pods.
    pub processes: usize,
    /// Mounts of this process's mount namespace.
    pub mounts: usize,
    /// Network namespaces that have a process or a name.
    pub netns: usize,
    /// Links of kind tun or tap, in the own and the named network namespaces.
    pub taps: usize,
    /// Ingress filters of those namespaces' links.
    pub tc_filters: usize,
    /// Control groups of pods.
    pub cgroups: usize,
    /// Sockets below containerd's state folder.
    pub sockets: usize,
    /// FIFOs below containerd's state folder.
    pub fifos: usize,
    /// Folders that containerd keeps for shims.
    pub bundles: usize,
}

impl Leftovers {
    /// Counts now. Needs root.
    ///
    /// # Errors
    ///
    /// When /proc, the control groups or a network namespace cannot be read.
    pub fn count() -> Result<Self, LeftoversError> {
        let state = files::state(Path::new(CONTAINERD_STATE))?;
        let links = links::count()?;
        Ok(Self {
            processes: processes::of_pods()?,
            mounts: files::mounts()?,
            netns: processes::network_namespaces()?,
            taps: links.taps,
            tc_filters: links.filters,
            cgroups: files::cgroups_of_pods(Path::new(CGROUPS))?,
            sockets: state.sockets,
            fifos: state.fifos,
            bundles: state.bundles,
        })
    }

    /// Every kind with its count, in the order they are shown.
    pub fn counts(&self) -> [(&'static str, usize); 9] {
        [
            ("processes", self.processes),
            ("mounts", self.mounts),
            ("network namespaces", self.netns),
            ("taps", self.taps),
            ("tc filters", self.tc_filters),
            ("cgroups", self.cgroups),
            ("sockets", self.sockets),
            ("FIFOs", self.fifos),
            ("bundles", self.bundles),
        ]
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, count)) in self.counts().iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{name} {count}")?;
        }
        Ok(())
    }
}

/// Whether a control group's path, or a part of it, belongs to pods: the kubelet's and containerd's
/// names, and our shim's.
fn names_a_pod(path: &str) -> bool {
    ["kubepods", "k8s.io", "cri-containerd", "podvisor-"]
        .iter()
        .any(|part| path.contains(part))
}
