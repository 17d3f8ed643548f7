//! A host on which nothing happens.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podvisor_proto::agent::v1::NetworkConfig;
use podvisor_proto::cgroups::Metrics;

use super::fake::Guest;
use crate::host::{
    ConfineRequest, DiskRequest, HostError, HostOps, LinkSocket, LocalHost, MacRequest,
    NamespaceListeners, NetworkRequest, Nic, RootfsRequest, TapsRequest, VolumeOrigin,
    VolumeRequest,
};
use crate::pod::files::PodFiles;

pub struct FakeHost(pub Arc<Guest>);

impl HostOps for FakeHost {
    fn open_taps(&self, _: &TapsRequest) -> Result<Vec<Nic>, HostError> {
        Ok(Vec::new())
    }
    fn set_macs(&self, _: &MacRequest) -> Result<(), HostError> {
        Ok(())
    }
    fn open_links(&self, _: &NetworkRequest) -> Result<Vec<LinkSocket>, HostError> {
        Ok(Vec::new())
    }
    fn redirect(&self, _: &TapsRequest) -> Result<NetworkConfig, HostError> {
        self.0.state.lock().unwrap().redirected = true;
        Ok(NetworkConfig::default())
    }
    fn release_network(&self, _: &NetworkRequest) -> Result<(), HostError> {
        self.0.state.lock().unwrap().redirected = false;
        Ok(())
    }
    fn listen(&self, _: &NetworkRequest) -> Result<NamespaceListeners, HostError> {
        let ipv4 = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        ipv4.set_nonblocking(true).unwrap();
        self.0.state.lock().unwrap().listening = ipv4.local_addr().ok();
        self.0.changed.notify_waiters();
        Ok(NamespaceListeners {
            ipv4,
            ipv6: None,
            steering: std::fs::File::open("/").unwrap().into(),
        })
    }
    fn mount_rootfs(&self, request: &RootfsRequest) -> Result<(), HostError> {
        let target = request.target.display().to_string();
        self.0.state.lock().unwrap().mounted.insert(target);
        Ok(())
    }
    fn unmount(&self, target: &Path) -> Result<(), HostError> {
        self.0
            .state
            .lock()
            .unwrap()
            .mounted
            .remove(&target.display().to_string());
        Ok(())
    }
    fn apparmor_policy(&self, profile: &str) -> Result<Vec<u8>, HostError> {
        Ok(profile.as_bytes().to_vec())
    }
    fn set_oom_score(&self, score: i64) -> Result<(), HostError> {
        self.0.state.lock().unwrap().oom_score = Some(score);
        Ok(())
    }
    fn enter_cgroup(&self, leaf: &Path) -> Result<Vec<PathBuf>, HostError> {
        self.0.state.lock().unwrap().cgroup = Some(leaf.to_owned());
        Ok(vec![leaf.to_owned()])
    }
    fn write_pod_files(&self, files: &PodFiles) -> Result<(), HostError> {
        self.0.state.lock().unwrap().files = Some(files.clone());
        Ok(())
    }
    fn metrics(&self, _: &Path) -> Result<Metrics, HostError> {
        Ok(Metrics::default())
    }
    fn confine(&self, request: &ConfineRequest) -> Result<(), HostError> {
        self.0.state.lock().unwrap().cpus.clone_from(&request.cpus);
        Ok(())
    }
    fn open_disk(&self, _: &DiskRequest) -> Result<File, HostError> {
        Ok(File::open("/dev/null").unwrap())
    }
    fn inspect_volume(&self, path: &Path) -> Result<VolumeOrigin, HostError> {
        // What nobody has made is somebody's folder.
        let somebodys = VolumeOrigin::Shared { has_mounts: false };
        Ok(LocalHost.inspect_volume(path).unwrap_or(somebodys))
    }
    fn open_volume(&self, request: &VolumeRequest) -> Result<OwnedFd, HostError> {
        self.open_path(&request.path)
    }
    fn open_path(&self, _: &Path) -> Result<OwnedFd, HostError> {
        let opened = std::fs::File::open("/").map_err(io::Error::other).unwrap();
        Ok(opened.into())
    }
}
